"use strict";
// Every word of the pages, in English and Chinese; the browser's language chooses.
const WORDS = {
  en: {
    fresh: "New conversation", hint: "Ask something. Enter sends, Shift+Enter begins a new line.",
    touchHint: "Ask something.", key: "API key", use: "Use", question: "Your question", send: "Send", stop: "Stop",
    stopped: "Stopped.", cut: "The answer reached its longest length.", lost: "No connection to the server.", failed: "The server could not answer.",
    routes: "What this server answers", schema: "The full description is at ",
  },
  zh: {
    fresh: "新对话", hint: "请输入问题。按 Enter 发送，Shift+Enter 换行。",
    touchHint: "请输入问题。", key: "API 密钥", use: "使用", question: "您的问题", send: "发送", stop: "停止",
    stopped: "已停止。", cut: "回答已达到最大长度。", lost: "无法连接服务器。", failed: "服务器无法回答。",
    routes: "本服务器的接口", schema: "完整说明见 ",
  },
};
const language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
const word = (name) => WORDS[language][name];
document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
for (const place of document.querySelectorAll("[data-word]")) place.textContent = word(place.dataset.word);
for (const place of document.querySelectorAll("[data-placeholder]")) {
  place.placeholder = word(place.dataset.placeholder);
  place.setAttribute("aria-label", place.placeholder);
}

// The key stays in this tab.
function withKey(headers) {
  const key = sessionStorage.getItem("key");
  return key ? { ...headers, Authorization: "Bearer " + key } : headers;
}
function onKey(then) {
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", document.getElementById("key").value);
    event.target.hidden = true;
    then();
  });
}
