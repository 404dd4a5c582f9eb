"use strict";

// Pictures go up one by one, a few at a time, so that each has its answer as soon as it is there.
const AT_A_TIME = 3, TRIES = 4, CLASSES = 5;
const find = (id) => document.getElementById(id);
let token = "", models = [], waiting = [], busy = 0, asked = 0, answered = 0;

const percent = (share) => (share > 0.9995 && share < 1 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`);
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function ask(path, options = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  for (let tries = 1; ; tries++) {
    const answer = await fetch(path, { ...options, headers });
    const again = answer.headers.get("retry-after");
    if (!again || tries === TRIES) return answer;
    await sleep(Number(again));
  }
}

async function told(answer) {
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `the server answered ${answer.status}`);
  return found;
}

// What the server has

async function begin() {
  const answer = await ask("/v2/repository/index", { method: "POST" });
  find("gate").hidden = answer.status !== 401;
  if (answer.status === 401) {
    find("about").textContent = "";
    find("gate-error").textContent = token ? "That is not the token." : "";
    find("token").focus();
    return;
  }
  const names = [...new Set((await told(answer)).map((each) => each.name))];
  models = await Promise.all(names.map(async (name) => told(await ask(`/v2/models/${name}`))));
  find("model").replaceChildren(...models.map((each) => new Option(each.name)));
  find("choice").hidden = models.length < 2;
  find("give").hidden = find("programs").hidden = false;
  describe();
  start();
}

const chosen = () => models[Math.max(0, find("model").selectedIndex)];
const query = () => (models.length > 1 ? `?model=${encodeURIComponent(chosen().name)}` : "");

function describe() {
  const { name, parameters } = chosen();
  const { classes, threshold, calibrated, multi_label } = parameters;
  const some = classes.slice(0, 12).join(", ") + (classes.length > 12 ? ", …" : "");
  const many = classes.length.toLocaleString("en");
  const what = multi_label ? `says which of ${many} labels a picture has` : `tells ${many} classes apart`;
  const below = multi_label ? "a label is not said" : "it is not sure";
  const sure = threshold > 0 ? ` Below ${percent(threshold)} ${below}.` : "";
  const meant = calibrated ? "Its probabilities are calibrated." : "Its probabilities are not calibrated.";
  find("about").textContent = `${name} ${what}: ${some}. ${meant}${sure}`;
  const address = location.origin + "/predict" + query();
  const bearer = token ? ` -H "Authorization: Bearer $TOKEN"` : "";
  find("curl").textContent = `curl${bearer} --data-binary @picture.jpg '${address}'`;
  find("python").textContent = [
    "import json, urllib.request",
    "",
    `picture = open("picture.jpg", "rb").read()`,
    `request = urllib.request.Request("${address}", picture)`,
    ...(token ? [`request.add_header("Authorization", "Bearer " + token)`] : []),
    `print(json.load(urllib.request.urlopen(request))["predictions"][0])`,
  ].join("\n");
}

// Pictures and their answers

function take(files) {
  const cards = files.map((file) => {
    const card = find("card").content.cloneNode(true).firstElementChild;
    const [picture] = card.querySelectorAll("img");
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    picture.addEventListener("error", () => { picture.hidden = true; });
    card.querySelector("bdi").textContent = file.name;
    waiting.push([file, card]);
    return card;
  });
  find("results").prepend(...cards);
  asked += files.length;
  tell();
  start();
}

function start() { // pictures that come before the models are known wait for them
  while (models.length && busy < AT_A_TIME && waiting.length) work();
}

function tell() {
  const left = asked - answered;
  find("status").textContent = left ? `${answered} of ${asked} answered` : asked ? `${asked} answered` : "";
}

async function work() {
  busy += 1;
  while (waiting.length) {
    const [file, card] = waiting.shift();
    const model = chosen();
    try {
      const body = new FormData(); // a form's answer says what is wrong with a picture
      body.append("picture", file);
      const answer = await ask(`/predict?model=${encodeURIComponent(model.name)}&top=${CLASSES}`, { method: "POST", body });
      const found = (await told(answer)).predictions[0];
      if (found.error) throw new Error(found.error);
      show(card, found, file, model);
    } catch (error) {
      fail(card, error);
    }
    answered += 1;
    tell();
  }
  busy -= 1;
}

function show(card, found, file, model) {
  const line = card.querySelector(".answer");
  line.textContent = found.labels ? found.labels.join(", ") || "no label" : found.class ?? "not sure";
  if (found.class === null) {
    const why = document.createElement("span");
    why.className = "soft";
    why.textContent = ` the likeliest has less than ${percent(model.parameters.threshold)}`;
    line.append(why);
  }
  card.querySelector(".bars").replaceChildren(...found.top.map(({ class: name, probability }) => {
    const row = document.createElement("li");
    const [label, share, track, fill] = ["bdi", "span", "span", "i"].map((tag) => document.createElement(tag));
    label.textContent = name;
    share.className = "share";
    share.textContent = percent(probability);
    track.className = "track";
    track.setAttribute("aria-hidden", "true");
    fill.style.width = `${100 * probability}%`;
    track.append(fill);
    row.append(label, share, track);
    return row;
  }));
  if (model.parameters.heat_map) offer(card, found.top[0].class, file, model);
}

function fail(card, error) {
  const line = card.querySelector(".answer");
  line.classList.add("error");
  line.textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
}

// Heat maps, where the server has them

function offer(card, label, file, model) {
  const button = card.querySelector(".why"), heat = card.querySelector(".heat");
  button.hidden = false;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", async () => {
    if (!heat.src) {
      button.disabled = true;
      try {
        const about = `?model=${encodeURIComponent(model.name)}&class=${encodeURIComponent(label)}`;
        const answer = await ask("/heatmap" + about, { method: "POST", body: file });
        if (!answer.ok) await told(answer);
        heat.src = URL.createObjectURL(await answer.blob());
        heat.alt = `Where the model looked for ${label}`;
      } catch (error) {
        button.textContent = error.message;
        return;
      } finally {
        button.disabled = false;
      }
    }
    heat.hidden = !heat.hidden;
    button.setAttribute("aria-pressed", String(!heat.hidden));
  });
}

// What the visitor does

for (const id of ["files", "camera"]) {
  find(id).addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = ""; // the same picture may be chosen again
  });
}
find("model").addEventListener("change", describe);
find("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  begin();
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) take(files);
});
let depth = 0; // of elements that a dragged picture is over
const over = (change) => {
  depth = change ? Math.max(0, depth + change) : 0;
  document.body.classList.toggle("over", depth > 0);
};
document.addEventListener("dragenter", () => over(1));
document.addEventListener("dragleave", () => over(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(0);
  take([...event.dataTransfer.files]);
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = find(button.dataset.copy);
    const label = button.firstChild, before = label.textContent;
    try {
      await navigator.clipboard.writeText(text.textContent);
      label.textContent = "Copied";
    } catch { // without https there is no clipboard: then it is selected
      getSelection().selectAllChildren(text);
      label.textContent = "Selected";
    }
    setTimeout(() => { label.textContent = before; }, 2000);
  });
}

begin().catch((error) => { find("about").textContent = error.message; });
