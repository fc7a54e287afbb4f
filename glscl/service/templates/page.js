// The search: what is asked for is in the address, so that it can be shared and "back" works.

import { describeModel, make, makeColumn } from "./results.js";
import { release, stopPlaying } from "./player.js";

const BOTH = "*"; // in the address, in place of an index: two models side by side
const FIRST = 12; // results at first, and how many more each time
const TRIES = 3;

const of = (id) => document.getElementById(id);
const [form, query, chips, status, problem] = ["search", "query", "chips", "status", "problem"].map(of);
const [results, intro, more, clipInput, filter] = ["results", "intro", "more", "clip", "filter"].map(of);

let server = null; // what /api/indexes says
let asked = { q: "", like: "", view: "", where: [], clip: null, k: FIRST };
let running = null; // the search that is not answered yet
let early = {}; // what was asked for before the server has said what it has

// ---- The address

function readAddress() {
  const words = new URLSearchParams(location.search);
  const view = words.get("index") ?? "";
  const known = server.indexes.some((index) => index.name === view) || (view === BOTH && server.indexes.length > 1);
  return {
    q: words.get("q") ?? "",
    like: words.get("like") ?? "",
    view: known ? view : server.indexes[0].name,
    where: words.getAll("where"),
    clip: null,
    k: FIRST,
  };
}

function writeAddress() {
  const words = new URLSearchParams();
  if (asked.q) words.set("q", asked.q);
  if (asked.like) words.set("like", asked.like);
  if (asked.view !== server.indexes[0].name) words.set("index", asked.view);
  for (const condition of asked.where) words.append("where", condition);
  const address = `${location.pathname}${words.size ? `?${words}` : ""}`;
  if (address !== `${location.pathname}${location.search}`) history.pushState(null, "", address);
}

/** Asks for something else: what is not named stays. */
function change(changes) {
  if (!server) {
    early = { ...early, ...changes };
    return;
  }
  asked = { ...asked, k: FIRST, ...changes };
  writeAddress();
  search();
}

// ---- The server

class Refused extends Error {}

async function ask(address, options = {}) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(address, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server does not answer. Is it still running?");
    }
    if (response.ok) return response.json();
    const said = await response.json().catch(() => ({ reason: `status ${response.status}` }));
    if ((response.status === 503 || response.status === 429) && attempt < TRIES) {
      status.textContent = "The server is busy; asking again …";
      await new Promise((done) => setTimeout(done, 1000 * Number(response.headers.get("Retry-After") ?? 1)));
      continue;
    }
    throw new Refused(`${said.reason[0].toUpperCase()}${said.reason.slice(1)}.`);
  }
}

function askIndex(name, signal) {
  const { q, like, clip, where, k } = asked;
  if (clip) {
    const body = new FormData();
    body.append("file", clip);
    body.append("index", name);
    body.append("k", k);
    for (const condition of where) body.append("where", condition);
    return ask("api/search/clip", { method: "POST", body, signal });
  }
  const words = new URLSearchParams({ index: name, k });
  if (like) words.set("id", like);
  else words.set("q", q);
  for (const condition of where) words.append("where", condition);
  return ask(`api/${like ? "similar" : "search"}?${words}`, { signal });
}

async function search() {
  running?.abort();
  stopPlaying();
  query.value = asked.q;
  showControls();
  problem.hidden = true;
  const nothing = !asked.q.trim() && !asked.like && !asked.clip;
  intro.hidden = !nothing;
  document.title = `${asked.q || (asked.like && `like ${asked.like}`) || "Search in videos"} · glscl`;
  if (nothing) {
    show([]);
    status.textContent = "";
    return;
  }
  const here = new AbortController();
  running = here;
  results.setAttribute("aria-busy", "true");
  status.textContent = asked.clip ? "Looking at the clip …" : "Searching …";
  const names = asked.view === BOTH ? server.indexes.slice(0, 2).map((index) => index.name) : [asked.view];
  try {
    const began = performance.now();
    const answers = await Promise.all(names.map((name) => askIndex(name, here.signal)));
    show(answers);
    status.textContent = describeAnswer(answers, performance.now() - began);
  } catch (error) {
    if (error.name === "AbortError") return;
    show([]);
    status.textContent = "";
    problem.textContent = error instanceof Refused ? error.message : `The page has made a mistake: ${error.message}`;
    problem.hidden = false;
  } finally {
    if (running === here) {
      running = null;
      results.removeAttribute("aria-busy");
    }
  }
}

function describeAnswer(answers, milliseconds) {
  const counts = answers.map((answer) => answer.results.length);
  const videos = counts.length > 1 ? counts.join(" and ") : counts[0];
  const what = asked.clip ? "like your clip" : asked.like ? "like that one" : "for your words";
  const [index] = answers.length > 1 ? [] : server.indexes.filter((one) => one.name === answers[0].index);
  const model = index ? ` · ${describeModel(index)}` : "";
  return `${videos} video${counts.length === 1 && counts[0] === 1 ? "" : "s"} ${what}, best first, in ${milliseconds.toFixed(0)} ms${model}`;
}

// ---- What is shown

const actions = {
  filter: (condition) => asked.where.includes(condition) || change({ where: [...asked.where, condition] }),
  like: (id) => {
    change({ q: "", like: id, clip: null });
    scrollTo({ top: 0 });
  },
};

function show(answers) {
  release(results);
  const columns = answers.map((answer) => ({ answer, index: server.indexes.find((one) => one.name === answer.index) }));
  const two = columns.length > 1;
  results.classList.toggle("two", two);
  results.replaceChildren(
    ...columns.map((one, at) => makeColumn(one.index, one.answer, two ? columns[1 - at] : null, actions, two)),
  );
  const first = results.querySelector(".card");
  if (first) makeCurrent(first);
  const most = Math.min(asked.k, server.max_results);
  more.hidden = asked.k >= server.max_results || !answers.some((answer) => answer.results.length >= most);
}

/** What narrows the search, each with a way to take it away. */
function showControls() {
  const items = asked.where.map((condition) => [condition, { where: asked.where.filter((one) => one !== condition) }]);
  if (asked.like) items.unshift([`like ${asked.like}`, { like: "" }]);
  if (asked.clip) items.unshift([`like your clip ${asked.clip.name}`, { clip: null }]);
  chips.replaceChildren(
    ...items.map(([text, without]) => {
      const item = make("li");
      const button = make("button", "chip set", text, { type: "button", "aria-label": `Take away: ${text}` });
      button.addEventListener("click", () => {
        change(without);
        query.focus();
      });
      item.append(button);
      return item;
    }),
  );
  for (const radio of document.querySelectorAll("#models input")) radio.checked = radio.value === asked.view;
}

function buildModels() {
  const { indexes } = server;
  const views = indexes.map((index) => [index.name, index.name, describeModel(index)]);
  if (indexes.length > 1) views.push([BOTH, "Side by side", `${indexes[0].name} and ${indexes[1].name}`]);
  for (const [value, text, title] of views) {
    const label = make("label", "", null, { title });
    const radio = make("input", "unseen", null, { type: "radio", name: "index", value });
    radio.addEventListener("change", () => change({ view: value }));
    label.append(radio, make("span", "", text));
    of("models").append(label);
  }
  of("models").hidden = indexes.length < 2;
}

function buildFilter() {
  const conditions = new Set();
  for (const index of server.indexes) {
    for (const [key, values] of Object.entries(index.metadata)) {
      for (const value of values) conditions.add(`${key}=${value}`);
    }
  }
  of("conditions").append(...[...conditions].map((value) => make("option", "", null, { value })));
  filter.hidden = !conditions.size;
}

function buildIntro() {
  const [index] = server.indexes;
  const count = index.videos.toLocaleString("en");
  of("size").textContent = `Search ${count} video${index.videos === 1 ? "" : "s"}, down to the moment`;
  of("examples-title").hidden = !index.examples.length;
  of("examples").append(
    ...index.examples.map((text) => {
      const item = make("li");
      const button = make("button", "chip", text, { type: "button" });
      button.addEventListener("click", () => change({ q: text, like: "", clip: null }));
      item.append(button);
      return item;
    }),
  );
  query.maxLength = server.max_characters;
}

// ---- Clips

function searchByClip(file) {
  if (!file) return;
  if (!server) {
    change({ q: "", like: "", clip: file });
    return;
  }
  const most = server.max_upload_bytes;
  problem.hidden = true;
  if (file.size > most) {
    problem.textContent = `${file.name} has ${Math.ceil(file.size / 1e6)} MB; at most ${Math.floor(most / 1e6)} MB are taken.`;
    problem.hidden = false;
    return;
  }
  change({ q: "", like: "", clip: file });
}

const drop = of("drop");
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => hasFiles(event) && (drop.hidden = false));
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
drop.addEventListener("dragleave", () => (drop.hidden = true));
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  drop.hidden = true;
  searchByClip(event.dataTransfer.files[0]);
});
of("choose").addEventListener("click", () => clipInput.click());
clipInput.addEventListener("change", () => {
  searchByClip(clipInput.files[0]);
  clipInput.value = "";
});

// ---- Keyboard

const cardsOf = () => [...results.querySelectorAll(".card")];

/** The one card that Tab reaches, with its buttons. */
function makeCurrent(card) {
  for (const other of cardsOf()) {
    const here = other === card;
    other.tabIndex = here ? 0 : -1;
    for (const button of other.querySelectorAll("button")) button.tabIndex = here ? 0 : -1;
  }
}
results.addEventListener("focusin", (event) => {
  const card = event.target.closest(".card");
  if (card) makeCurrent(card);
});

/** The nearest card in a direction, as the cards lie on the page. */
function neighbour(card, key) {
  const box = card.getBoundingClientRect();
  const middle = (one) => [one.left + one.width / 2, one.top];
  const [x, y] = middle(box);
  let best = null, least = Infinity;
  for (const other of cardsOf()) {
    const [left, top] = middle(other.getBoundingClientRect());
    const [dx, dy] = [left - x, top - y];
    const along = { ArrowLeft: -dx, ArrowRight: dx, ArrowUp: -dy, ArrowDown: dy }[key];
    const across = Math.abs(key === "ArrowLeft" || key === "ArrowRight" ? dy : dx);
    if (along > 8 && along + 4 * across < least) [best, least] = [other, along + 4 * across];
  }
  return best;
}

function moveAmong(card, event) {
  const next = neighbour(card, event.key);
  if (next) {
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  } else if (event.key === "ArrowUp") query.focus();
  else return;
  event.preventDefault();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const card = document.activeElement?.closest(".card");
  const writing = document.activeElement?.matches("input:not([type=radio])");
  if (event.key === "/" && !writing) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "Escape") {
    running?.abort();
    if (!stopPlaying() && document.activeElement !== query) query.focus();
  } else if (event.key.startsWith("Arrow") && card) moveAmong(card, event);
  else if (event.key === "ArrowDown" && document.activeElement === query) {
    results.querySelector(".card")?.focus();
    event.preventDefault();
  } else if (card && document.activeElement === card && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    card.player.toggle();
  } else if (card && event.key === "l") card.like();
});

// ---- Beginning

form.addEventListener("submit", (event) => {
  event.preventDefault();
  change({ q: query.value.trim(), like: "", clip: null });
});
query.addEventListener("search", () => query.value || !asked.q || change({ q: "" })); // its cross
filter.addEventListener("submit", (event) => {
  event.preventDefault();
  const condition = of("condition").value.trim();
  of("condition").value = "";
  if (condition) actions.filter(condition);
});
more.firstElementChild.addEventListener("click", () => {
  asked.k = Math.min(asked.k + FIRST, server.max_results);
  search();
});
addEventListener("popstate", () => {
  if (!server) return;
  asked = readAddress();
  search();
});

try {
  server = await ask("api/indexes");
  buildModels();
  buildFilter();
  buildIntro();
  asked = { ...readAddress(), ...early };
  writeAddress();
  await search();
} catch (error) {
  problem.textContent = error.message;
  problem.hidden = false;
}
