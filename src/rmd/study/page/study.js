"use strict";

// The page of a study. All state is on the server; the page keeps the participant's code only.
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const views = ["welcome", "part", "pair", "finished"];
const KEEP = "rmd-study-code";
const SMALL = 256; // Pictures below this side are enlarged without smoothing.
let about = null;
let code = null;
let current = null;
let seen = null; // The number of the question whose introduction was read.
let ready = false;

function show(name) {
  for (const view of views) one(`#${view}`).hidden = view !== name;
}

function say(text) {
  for (const place of all(".error")) place.textContent = text;
}

function fill(selector, text) {
  for (const place of all(selector)) place.textContent = text;
}

// Ask the server; wait and ask again while there is no connection, since every request may be repeated.
async function ask(path, body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const reply = await fetch(path, body && {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      });
      if (reply.status < 500) return { status: reply.status, ...(await reply.json()) };
    } catch (error) {
      // There is no connection.
    }
    say("There is no connection to the study. Your choices so far are stored; trying again …");
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

function medium(url) {
  const clip = url.endsWith(".mp4");
  const element = document.createElement(clip ? "video" : "img");
  if (clip) {
    Object.assign(element, { muted: true, loop: true, playsInline: true, preload: "auto" });
    element.src = url;
    return { element, loaded: new Promise((resolve) => element.addEventListener("canplaythrough", resolve, { once: true })) };
  }
  element.alt = "";
  element.src = url;
  return { element, loaded: element.decode().catch(() => undefined) };
}

function together(left, right) {
  if (left.tagName !== "VIDEO") {
    for (const image of [left, right]) image.classList.toggle("small", image.naturalWidth < SMALL);
    return;
  }
  left.currentTime = right.currentTime = 0;
  left.play();
  right.play();
  left.addEventListener("timeupdate", () => {
    if (Math.abs(left.currentTime - right.currentTime) > 0.08) right.currentTime = left.currentTime;
  });
}

function allow(allowed) {
  ready = allowed;
  for (const button of all("#choices button")) button.disabled = !allowed;
}

async function present(task) {
  current = task;
  if (task.finished) {
    localStorage.removeItem(KEEP);
    return show("finished");
  }
  fill(".count", `${task.done + 1} of ${task.tasks}`);
  fill(".question", about.questions[task.question]);
  fill(".mine", code);
  if (seen !== task.question) return show("part");
  allow(false);
  one("#progress").value = task.done / task.tasks;
  one("#prompt").textContent = task.prompt;
  const [left, right] = [medium(task.left), medium(task.right)];
  one("#left").replaceChildren(left.element);
  one("#right").replaceChildren(right.element);
  show("pair");
  await Promise.all([left.loaded, right.loaded]);
  if (current !== task) return;
  together(left.element, right.element);
  for (const url of task.ahead) medium(url);
  setTimeout(() => { if (current === task) allow(true); }, 1000 * about.seconds);
}

async function enter(given) {
  const task = await ask("/api/next", { code: given });
  if (task.status !== 200) {
    localStorage.removeItem(KEEP);
    say(task.error);
    return show("welcome");
  }
  code = given;
  seen = null;
  localStorage.setItem(KEEP, code);
  say("");
  await present(task);
}

async function choose(choice) {
  if (!ready || one("#pair").hidden) return;
  allow(false);
  const task = await ask("/api/vote", { code, task: current.done, choice });
  say(task.status === 200 ? "" : task.error);
  if (task.status === 200) return present(task);
  if (task.status === 425) return setTimeout(() => allow(true), 500);
  return present(await ask("/api/next", { code })); // Another tab was faster.
}

one("#agreed").addEventListener("change", (event) => { one("#start").disabled = !event.target.checked; });
one("#join").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (one("#agreed").checked) await enter((await ask("/api/join", { agreed: true })).code);
});
one("#resume").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = one("#code").value.trim().toLowerCase();
  if (given) await enter(given);
});
one("#go").addEventListener("click", () => { seen = current.question; present(current); });
for (const button of all("#choices button")) button.addEventListener("click", () => choose(button.dataset.choice));
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie" }[event.key];
  if (choice && !one("#pair").hidden) {
    event.preventDefault();
    choose(choice);
  } else if (event.key === "Enter" && !one("#part").hidden && document.activeElement !== one("#go")) {
    one("#go").click();
  }
});

(async () => {
  about = await ask("/api/about");
  document.title = about.title;
  fill("#title", about.title);
  fill(".total", about.tasks);
  fill(".media", about.media);
  one("#questions").replaceChildren(...about.questions.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  const kept = localStorage.getItem(KEEP);
  if (kept) return enter(kept);
  return show("welcome");
})();
