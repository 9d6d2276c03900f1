"use strict";
// The chat page: it speaks the public API and nothing else. Text from the model goes in as textContent only.
const get = (id) => document.getElementById(id);
const talk = get("talk"), question = get("question");
const isTouch = matchMedia("(pointer: coarse)").matches;
let model = null, messages = [], running = null;

if (isTouch) get("hint").textContent = word("touchHint");

function show(role, text) {
  get("hint").hidden = true;
  const box = document.createElement("div");
  box.className = "turn " + role;
  box.dir = "auto";
  box.textContent = text;
  talk.append(box);
  box.scrollIntoView({ block: "end" });
  return box;
}

function note(text) { show("note", text); }

async function reason(response) {
  try { return (await response.json()).error.message; } catch { return word("failed"); }
}

async function greet() {
  try {
    const response = await fetch("/v1/models", { headers: withKey({}) });
    if (response.status === 401) { get("key-form").hidden = false; get("key").focus(); return; }
    if (!response.ok) { note(await reason(response)); return; }
    model = (await response.json()).data[0].id;
    get("model").textContent = model;
    document.title = model;
    question.focus();
  } catch { note(word("lost")); }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer(box) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", signal: running.signal, headers: withKey({ "Content-Type": "application/json" }),
    body: JSON.stringify({ model, messages, stream: true }),
  });
  if (response.status === 401) get("key-form").hidden = false;
  if (!response.ok) throw new Error(await reason(response));
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    for (const choice of event.choices) {
      const isLow = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
      box.textContent += choice.delta.content || "";
      if (choice.finish_reason === "length") note(word("cut"));
      if (isLow) talk.scrollTop = talk.scrollHeight;
    }
  }
}

function busy(isBusy) {
  get("send").hidden = isBusy;
  get("stop").hidden = !isBusy;
  talk.setAttribute("aria-busy", isBusy);
}

async function ask(event) {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || running || !model) return;
  question.value = "";
  grow();
  messages.push({ role: "user", content: text });
  show("user", text);
  const box = show("assistant", "");
  const mine = (running = new AbortController()), conversation = messages;
  busy(true);
  try {
    await answer(box);
  } catch (error) {
    note(error.name === "AbortError" ? word("stopped") : error instanceof TypeError ? word("lost") : error.message);
  }
  if (box.textContent) conversation.push({ role: "assistant", content: box.textContent });
  else { conversation.pop(); box.remove(); }
  if (running === mine) { running = null; busy(false); }
  if (!isTouch) question.focus();
}

function fresh() {
  if (running) running.abort();
  messages = [];
  for (const box of talk.querySelectorAll(".turn")) box.remove();
  get("hint").hidden = false;
  question.focus();
}

function grow() {
  question.style.height = "auto";
  question.style.height = Math.min(question.scrollHeight, innerHeight / 3) + "px";
}

get("ask").addEventListener("submit", ask);
get("stop").addEventListener("click", () => running && running.abort());
get("fresh").addEventListener("click", fresh);
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  // isComposing: Enter that only ends the typing of a Chinese word does not send.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch) get("ask").requestSubmit(), event.preventDefault();
});
onKey(greet);
greet();
