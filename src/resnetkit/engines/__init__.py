"""The same network in other engines: files for ONNX Runtime, OpenVINO and MNN, and what runs them."""
