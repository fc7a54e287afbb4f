// Draws results. Whatever a library says (ids, captions, metadata) becomes text, never markup.

import { Player, loadWhenNear } from "./player.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000, HEIGHT = 40; // of a strip, in its own units

/** An element with a class, text and attributes. */
export function make(name, className = "", text = null, attributes = {}) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export function clock(seconds, digits = 1) {
  const tenths = 10 ** digits;
  const rounded = Math.round(seconds * tenths) / tenths;
  const rest = (rounded % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return `${Math.floor(rounded / 60)}:${rest}`;
}

/** The frames of a segment as bars, as high as what they were attended to, with the moment marked below them. */
function makeStrip(result, seek) {
  const [from, to] = result.segment;
  const x = (second) => ((second - from) / Math.max(to - from, 1e-3)) * WIDTH;
  const figure = make("figure", result.weights.length ? "strip" : "strip bare");
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", describeStrip(result));
  svg.append(draw("rect", { class: "ground", x: 0, y: 0, width: WIDTH, height: HEIGHT - 8 }));
  const most = Math.max(...result.weights, 1e-9);
  result.weights.forEach((weight, number) => {
    const time = result.times[number];
    const left = number ? (result.times[number - 1] + time) / 2 : from;
    const right = number + 1 < result.times.length ? (time + result.times[number + 1]) / 2 : to;
    const height = Math.max(1, (weight / most) * (HEIGHT - 10));
    const inside = time >= result.start && time <= result.end;
    const bar = draw("rect", {
      class: inside ? "bar inside" : "bar",
      x: x(left) + 2, width: Math.max(1, x(right) - x(left) - 4), y: HEIGHT - 8 - height, height,
    });
    const title = draw("title", {});
    title.textContent = `${clock(time)}: ${(100 * weight).toFixed(0)} %`;
    bar.append(title);
    svg.append(bar);
  });
  const [left, right] = [Math.max(from, result.start), Math.min(to, result.end)];
  svg.append(draw("rect", { class: "mark", x: x(left), width: Math.max(6, x(right) - x(left)), y: HEIGHT - 5, height: 5 }));
  const line = draw("rect", { class: "line", x: -20, y: 0, width: 6, height: HEIGHT });
  svg.append(line);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    seek(from + ((event.clientX - box.left) / box.width) * (to - from));
    event.stopPropagation();
  });
  const axis = make("figcaption", "axis");
  axis.append(make("span", "", clock(from)), make("span", "", clock(to)));
  figure.append(svg, axis);
  return { figure, show: (second) => line.setAttribute("x", second === null ? -20 : x(second) - 3) };
}

function describeStrip(result) {
  const moment = `The moment is from ${clock(result.start)} to ${clock(result.end)}.`;
  if (!result.weights.length) return moment;
  const best = result.weights.indexOf(Math.max(...result.weights));
  const share = (100 * result.weights[best]).toFixed(0);
  const count = result.weights.length;
  return `Attention of ${count} frame${count > 1 ? "s" : ""}, most at ${clock(result.times[best])} (${share} %). ${moment}`;
}

/** Concepts as bars, between the smallest and the largest similarity of this result. */
function makeConcepts(values) {
  const names = values.map((value, number) => [value, number + 1]).sort((one, other) => other[0] - one[0]);
  const said = names.slice(0, 3).map(([value, number]) => `${number} (${value.toFixed(2)})`).join(", ");
  const row = make("div", "concepts", null, { title: `Concepts that matched best: ${said}` });
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const step = WIDTH / values.length;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `Concepts that matched best: ${said}`);
  values.forEach((value, number) => {
    const height = HEIGHT * (0.2 + (0.8 * (value - least)) / Math.max(most - least, 1e-9));
    const best = number + 1 === names[0][1];
    svg.append(draw("rect", {
      class: best ? "bar inside" : "bar",
      x: number * step + step * 0.1, width: step * 0.8, y: HEIGHT - height, height,
    }));
  });
  row.append(make("span", "", "concepts"), svg);
  return row;
}

function makeChips(result, actions) {
  const list = make("ul", "chips");
  for (const [key, value] of Object.entries(result.metadata)) {
    const chip = make("button", "chip", `${key}=${value}`, { type: "button", title: "Show only these", tabindex: -1 });
    chip.addEventListener("click", () => actions.filter(`${key}=${value}`));
    const item = make("li");
    item.append(chip);
    list.append(item);
  }
  return list;
}

/** One result. `elsewhere` says where the other model has it, or is empty. */
function makeCard(result, rank, elsewhere, actions) {
  const name = result.captions[0] || result.id;
  const said = `${rank}. ${name}. Score ${result.score.toFixed(3)}, ${clock(result.start)} to ${clock(result.end)}.`;
  const card = make("article", "card", null, { tabindex: -1, "aria-label": said });
  const screen = make("div", "screen");
  const video = make("video", "", null, { playsinline: "", preload: "metadata", tabindex: -1, "aria-hidden": "true" });
  video.muted = true;
  const player = new Player(video, result, (second) => strip.show(second));
  const strip = makeStrip(result, (second) => player.seek(second));
  video.addEventListener("error", () => {
    if (video.getAttribute("src")) screen.append(make("p", "unplayable", "This browser cannot play this file."));
  }, { once: true });
  loadWhenNear(video, `${result.media}#t=${result.start.toFixed(2)}`);
  screen.append(video, make("span", "rank", rank), make("span", "moment", `${clock(result.start)}–${clock(result.end)}`));
  screen.addEventListener("click", () => player.toggle());
  screen.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && player.preview());
  screen.addEventListener("pointerleave", () => player.leave());
  card.addEventListener("focus", () => card.matches(":focus-visible") && player.preview());
  card.addEventListener("blur", () => player.leave());

  const line = make("p", "line");
  line.append(make("span", "score", result.score.toFixed(3)), make("span", "id", result.id, { title: result.id }));
  const like = make("button", "like", "More like this", { type: "button", tabindex: -1 });
  like.addEventListener("click", () => actions.like(result.id));
  card.append(screen, strip.figure, make("p", "caption", result.captions[0] ?? ""), line);
  if (result.concepts.length) card.append(makeConcepts(result.concepts));
  if (Object.keys(result.metadata).length) card.append(makeChips(result, actions));
  const last = make("p", "last");
  last.append(like);
  if (elsewhere) last.append(make("span", "elsewhere", elsewhere));
  card.append(last);
  card.player = player;
  card.like = () => actions.like(result.id);
  return card;
}

/** A model's results, under its name if there are two. */
export function makeColumn(index, answer, other, actions, titled) {
  const column = make("section", "column", null, { "aria-label": `Results of ${index.name}` });
  if (titled) {
    const head = make("h2", "", index.name);
    head.append(make("small", "", describeModel(index)));
    column.append(head);
  }
  if (!answer.results.length) column.append(make("p", "note", "No video is left: take a filter away."));
  const ranks = new Map(other?.answer.results.map((result, number) => [result.id, number + 1]));
  const list = make("ol", "cards");
  answer.results.forEach((result, number) => {
    let elsewhere = "";
    if (other) {
      const there = ranks.get(result.id);
      elsewhere = there ? `${there}. in ${other.index.name}` : `not among ${other.index.name}'s ${other.answer.results.length}`;
    }
    const item = make("li");
    item.append(makeCard(result, number + 1, elsewhere, actions));
    list.append(item);
  });
  column.append(list);
  return column;
}

export function describeModel(index) {
  const from = index.train_domains.length ? `trained on ${index.train_domains.join(", ")}` : "training data unknown";
  return `${index.head}, ${from}`;
}
