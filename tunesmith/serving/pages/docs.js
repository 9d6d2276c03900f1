"use strict";
// Lists the routes of /openapi.json with the fields of their bodies.
const table = document.getElementById("routes");

function cell(row, tag, text) {
  const inner = document.createElement(tag);
  inner.textContent = text;
  row.insertCell().append(inner);
}

function fields(schema, operation) {
  const body = operation.requestBody && operation.requestBody.content["application/json"].schema;
  if (!body) return "";
  const name = body.$ref.split("/").pop(), type = schema.components.schemas[name];
  return Object.keys(type.properties).map((key) => (type.required.includes(key) ? key : key + "?")).join(", ");
}

async function list() {
  const response = await fetch("/openapi.json", { headers: withKey({}) });
  if (response.status === 401) { document.getElementById("key-form").hidden = false; return; }
  const schema = await response.json();
  table.replaceChildren();
  for (const [path, methods] of Object.entries(schema.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const row = table.insertRow();
      cell(row, "code", method.toUpperCase() + " " + path);
      cell(row, "span", operation.summary || "");
      cell(row, "code", fields(schema, operation));
    }
  }
}

onKey(list);
list();
