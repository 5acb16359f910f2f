// The page of `rlbridge rollouts view`. Rollouts hold hostile text: it goes into text nodes only.
"use strict";

const ORIGINS = ["prompt", "sampled", "bridge", "repaired", "missing"];
const COLOURS = ["provenance", "logprob", "mask"];
const $ = (id) => document.getElementById(id);
const state = { from: 0, total: 0, rows: [], chosen: -1, hits: null, tokens: true, colour: 0,
                drawn: null, stop: null, info: null };

function el(tag, fields = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

async function ask(path) {
  const answer = await fetch(path);
  const document_ = await answer.json();
  if (!answer.ok) throw new Error(document_.error || answer.statusText);
  return document_;
}

const number = (value) => value.toLocaleString("en-US");
const rewardText = (row) => row.reward === null ? "no reward" : String(+row.reward.toPrecision(4));

// The list -------------------------------------------------------------------------------------

function filters() {
  const asked = new URLSearchParams();
  for (const name of ["min", "max", "environment", "failure", "sort"]) {
    const value = $(name).value;
    if (name === "environment" ? value !== "*" : value) asked.set(name, name === "environment" ? value.slice(1) : value);
  }
  return asked;
}

async function list(choose = 0) {
  const asked = filters();
  if (state.hits) {
    const page = state.hits.slice(state.from, state.from + 50);
    if (!page.length) { show({ total: 0, rows: [] }, choose); return; }
    asked.set("ids", page.join(","));
  } else asked.set("from", state.from);
  try {
    const answer = await ask("/api/rows?" + asked);
    if (state.hits) answer.total = state.hits.length;
    show(answer, choose);
  } catch (error) { $("found").textContent = error.message; }
}

function show(answer, choose) {
  state.total = answer.total;
  state.rows = answer.rows;
  $("rows").replaceChildren(...answer.rows.map((row, at) => el("li",
    { role: "option", id: "row-" + at, "aria-selected": "false", onclick: () => pick(at) },
    el("span", { class: "head" },
      el("b", {}, row.task >= 0 ? `${row.task} / ${Math.max(row.rollout, 0)}` : `row ${row.number}`),
      el("span", {}, row.environment),
      el("span", { class: row.failure ? "failed" : "" }, row.failure || (row.calls ? `${row.calls} calls, ${number(row.tokens)} tokens` : "")),
      el("span", { class: "reward" }, row.reward === null ? "–" : rewardText(row))),
    el("span", { class: "preview" }, row.preview))));
  const last = state.from + answer.rows.length;
  $("found").textContent = state.searching || `${number(state.total)} of ${number(state.info.rows)} rows` + (state.hits ? " hold the text" : "");
  $("page").textContent = answer.rows.length ? `${number(state.from + 1)}–${number(last)}` : "none";
  $("previous").disabled = state.from === 0;
  $("next").disabled = last >= state.total;
  $("rows").scrollTop = 0;
  if (answer.rows.length && choose !== null) pick(choose < 0 ? answer.rows.length - 1 : choose);
  if (!answer.rows.length) $("rollout").replaceChildren(el("p", { class: "empty" }, "No row passes these filters."));
}

async function pick(at) {
  state.chosen = at;
  for (const [index, item] of [...$("rows").children].entries())
    item.setAttribute("aria-selected", String(index === at));
  $("rows").setAttribute("aria-activedescendant", "row-" + at);
  const item = $("row-" + at);
  if (item) item.scrollIntoView({ block: "nearest" });
  const row = state.rows[at];
  try {
    const drawn = await ask("/api/rollout/" + row.number);
    if (state.rows[state.chosen] !== row) return;
    state.drawn = drawn;
    draw();
    $("rollout").scrollTop = 0;
  } catch (error) {
    $("rollout").replaceChildren(el("p", { class: "failed" }, error.message));
  }
}

function step(by) {
  const at = state.chosen + by;
  if (at >= 0 && at < state.rows.length) pick(at);
  else if (by > 0 && state.from + state.rows.length < state.total) turn(1);
  else if (by < 0 && state.from > 0) turn(-1, -1);
}

function turn(by, choose = 0) {
  const from = state.from + by * 50;
  if (from < 0 || from >= state.total) return;
  state.from = from;
  list(choose);
}

function fresh() { state.from = 0; list(); }

// Search ---------------------------------------------------------------------------------------

async function search() {
  if (state.stop) state.stop.abort();
  const text = $("search").value;
  state.hits = null;
  state.searching = "";
  $("progress").hidden = true;
  if (!text) { fresh(); return; }
  const stop = state.stop = new AbortController();
  state.hits = [];
  $("progress").hidden = false;
  try {
    const answer = await fetch("/api/search?" + new URLSearchParams({ text }), { signal: stop.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", shown = 0;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const told = JSON.parse(line);
        state.hits.push(...told.rows);
        $("progress").value = told.read / told.size;
      }
      state.searching = `${number(state.hits.length)} rows so far hold the text …`;
      $("found").textContent = state.searching;
      if (!shown && state.hits.length >= 50) { shown = 1; state.from = 0; await list(); }
    }
    state.searching = "";
    $("progress").hidden = true;
    state.from = 0;
    await list();
    if (state.hits.length >= state.info.max_hits)
      $("found").textContent = `the first ${number(state.hits.length)} rows that hold the text`;
  } catch (error) { if (error.name !== "AbortError") $("found").textContent = error.message; }
}

// One rollout ----------------------------------------------------------------------------------

function draw() {
  const row = state.drawn;
  const title = el("div", { class: "title" },
    el("h2", {}, row.task >= 0 ? `Task ${row.task}, rollout ${Math.max(row.rollout, 0)}` : `Row ${row.number}`),
    el("span", { class: "reward" + (row.failure ? " failed" : "") }, row.failure || "reward " + rewardText(row)),
    el("span", {}, row.environment),
    el("span", {}, row.calls ? `${row.calls} model calls, ${number(row.tokens)} sampled tokens` : "no token fields"));
  const items = [...row.prompt.map((item) => drawItem(item, "prompt")),
                 ...row.output.map((item) => drawItem(item, "")),
                 ...row.calls_own.map((call, at) => drawItem({ role: "assistant", title: `call ${at + 1}`, text: "", ...call }, ""))];
  const parts = [title, tools(row), ...items];
  if (row.tools.length) parts.push(folded(`Tools offered (${row.tools.length})`, row.tools));
  parts.push(folded("Other fields of the row", row.fields));
  $("rollout").replaceChildren(...parts);
}

function tools(row) {
  const colour = COLOURS[state.colour];
  const bar = el("div", { class: "tools" },
    el("button", { type: "button", id: "tokens-button", "aria-pressed": String(state.tokens), onclick: () => { state.tokens = !state.tokens; draw(); } }, "Tokens (t)"),
    el("button", { type: "button", id: "colour-button", disabled: state.tokens ? null : "", onclick: nextColour }, `Colour: ${colour} (c)`));
  if (state.tokens && row.calls) bar.append(legend(colour));
  if (!row.text && row.calls && state.tokens)
    bar.append(el("span", { class: "note" }, "IDs; start with --model MODEL to see text"));
  return bar;
}

function legend(colour) {
  const entries = {
    provenance: ORIGINS.map((name, at) => ["o" + at, name]),
    logprob: [["p0", "certain"], ["p1", "below 0.6"], ["p2", "below 0.2"], ["p3", "below 0.02"], ["plain", "not sampled"]],
    mask: [["trained", "trained"], ["masked", "not trained"]],
  }[colour];
  return el("span", { class: "legend" }, ...entries.map(([kind, name]) => el("span", {}, el("i", { class: kind }), name)));
}

function nextColour() { state.colour = (state.colour + 1) % COLOURS.length; draw(); }

function folded(title, value) {
  return el("details", {}, el("summary", {}, title), el("pre", { class: "item" }, JSON.stringify(value, null, 2)));
}

function drawItem(item, place) {
  const who = item.title && item.title !== "message" && item.title !== item.role ? `${item.role}: ${item.title}` : item.role;
  const box = el("section", { class: `item ${item.role}` }, el("h3", {}, place ? `${who} (prompt)` : who));
  if (item.text || !item.tokens) box.append(el("pre", {}, item.text || "(empty)"));
  if (item.problem) box.append(el("p", { class: "drift" }, "token fields: " + item.problem));
  if (item.tokens && state.tokens) box.append(...drawTokens(item.tokens));
  return box;
}

function drawTokens(call) {
  const spans = call.ids.map((id, at) => drawToken(call, id, at));
  const parts = [];
  if (call.drift) parts.push(drawDrift(call.drift));
  const note = [];
  if (call.skipped) note.push(`${number(call.skipped)} earlier tokens, the same as before, are not shown`);
  if (call.cut) note.push(`${number(call.cut)} tokens more are not shown`);
  parts.push(el("div", { class: "tokens" + (state.drawn.text ? "" : " ids"), role: "group", "aria-label": "tokens of this call" }, ...spans));
  if (note.length) parts.push(el("p", { class: "note" }, note.join("; ")));
  return parts;
}

function drawToken(call, id, at) {
  const sampled = at - call.sampled_from;
  const logprob = sampled >= 0 ? call.logprobs[sampled] : undefined;
  const trained = sampled >= 0 && call.trained[sampled];
  let kind = "o" + call.origin[at];
  if (COLOURS[state.colour] === "mask") kind = trained ? "trained" : "masked";
  if (COLOURS[state.colour] === "logprob") kind = sampled < 0 || logprob === null ? "plain" : heat(logprob);
  if (call.drift && at + call.skipped >= call.drift.at && sampled < 0) kind += " drifted";
  const told = [`token ${id}`, `at ${at + call.skipped}`, ORIGINS[call.origin[at]]];
  if (logprob === null) told.push("no logprob");
  else if (logprob !== undefined) told.push(`logprob ${logprob} (p ${Math.exp(logprob).toPrecision(3)})`);
  told.push(trained ? "trained" : "not trained");
  return el("span", { class: "t " + kind, title: told.join(", ") }, call.texts[at]);
}

const heat = (logprob) => "p" + [0.6, 0.2, 0.02].filter((share) => Math.exp(logprob) < share).length;

function drawDrift(drift) {
  const words = [`Drift at token ${number(drift.at)}: ${drift.kind}. The engine had other tokens before.`];
  if (drift.known !== undefined) words.push(` It had ${JSON.stringify(drift.known)}; this prompt says ${JSON.stringify(drift.rendered)}.`);
  return el("p", { class: "drift" }, words.join(""));
}

// Start ----------------------------------------------------------------------------------------

function nextDrift() {
  const found = [...document.querySelectorAll("#rollout .drift")];
  const below = found.find((node) => node.getBoundingClientRect().top > 120) || found[0];
  if (below) below.scrollIntoView({ block: "center" });
}

function keys(event) {
  const field = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && field) { event.target.blur(); $("rows").focus(); return; }
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  const inList = event.target === $("rows");
  const moves = { j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1),
    "/": () => $("search").focus(), t: () => state.drawn && (state.tokens = !state.tokens, draw()),
    c: () => state.drawn && state.tokens && nextColour(), d: nextDrift, "?": help };
  if (inList) Object.assign(moves, { ArrowDown: () => step(1), ArrowUp: () => step(-1), Enter: () => $("rollout").focus() });
  const move = moves[event.key];
  if (move) { event.preventDefault(); move(); }
}

function help() {
  $("help").hidden = !$("help").hidden;
  $("help-button").setAttribute("aria-expanded", String(!$("help").hidden));
}

function options(select, first, counts) {
  select.replaceChildren(...first, ...Object.entries(counts).map(([name, count]) =>
    el("option", { value: select.id === "environment" ? "=" + name : name }, `${name || "(none)"} · ${number(count)}`)));
}

async function start() {
  const info = state.info = await ask("/api/info");
  document.title = `${info.file} · rollouts`;
  $("file").textContent = info.file;
  $("about").textContent = `${number(info.rows)} rollouts` + (info.bad ? `, ${number(info.bad)} bad lines left out` : "");
  options($("environment"), [el("option", { value: "*" }, "all")], info.environments);
  const { "": valid = 0, ...failures } = info.failures;
  options($("failure"), [el("option", { value: "" }, "all"), el("option", { value: "none" }, `valid reward · ${number(valid)}`),
    el("option", { value: "any" }, `no valid reward · ${number(info.rows - valid)}`)], failures);
  for (const name of ["min", "max", "environment", "failure", "sort"])
    $(name).addEventListener("change", () => { state.hits = null; $("search").value = ""; fresh(); });
  $("search").addEventListener("change", search);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(search));
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("help-button").addEventListener("click", help);
  document.addEventListener("keydown", keys);
  await list();
  $("rows").focus();
}

start().catch((error) => { $("about").textContent = error.message; });
