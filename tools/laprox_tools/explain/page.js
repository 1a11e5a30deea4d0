"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const share = Uint8Array.from(atob(data.share), c => c.charCodeAt(0)); // [layer][token], of 255
const {layers, tokens, starts} = data;
const map = document.getElementById("map"), tip = document.getElementById("tip");
const title = document.getElementById("tip-title"), bars = document.getElementById("tip-bars");
const spans = [...document.getElementById("text").children];
const order = new Map(spans.map((span, index) => [span, index]));
const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2).padEnd(2, hex[i]), 16));
const full = hex => hex.length === 4 ? "#" + [...hex.slice(1)].map(c => c + c).join("") : hex;

function pieceAt(token) {
  let low = 0, high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= token) low = middle; else high = middle - 1;
  }
  return low;
}

function drawMap() {
  const width = Math.min(tokens, Math.max(1, Math.floor(map.clientWidth)));
  const [hot, paper] = [rgb(full(color("--hot"))), rgb(full(color("--paper")))];
  map.width = width;
  map.height = layers;
  map.style.height = Math.min(480, layers * 14) + "px";
  const context = map.getContext("2d"), image = context.createImageData(width, layers);
  for (let layer = 0; layer < layers; layer++) {
    for (let x = 0; x < width; x++) {
      const first = Math.floor(x * tokens / width), last = Math.max(first + 1, Math.floor((x + 1) * tokens / width));
      let most = 0;
      for (let token = first; token < last; token++) most = Math.max(most, share[layer * tokens + token]);
      const heat = Math.sqrt(most / 255), at = 4 * (layer * width + x);
      for (let c = 0; c < 3; c++) image.data[at + c] = paper[c] + (hot[c] - paper[c]) * heat;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  const each = Math.ceil(tokens / width);
  document.getElementById("axis").textContent = `Positions 0 to ${(tokens - 1).toLocaleString("en")} from left to right` +
    (each > 1 ? `, about ${each} to a column, which shows the one kept most` : "") + `; layer 0 is on top.`;
}

let shown = null;
function show(piece, token) {
  if (shown !== null) spans[shown].classList.remove("here");
  shown = piece;
  spans[piece].classList.add("here");
  const end = piece + 1 < starts.length ? starts[piece + 1] : tokens;
  const at = token ?? starts[piece];
  let sum = 0;
  for (let layer = 0; layer < layers; layer++) sum += share[layer * tokens + at] / 255;
  const many = end - starts[piece] > 1 ? ` (one of ${end - starts[piece]} that are this text)` : "";
  title.textContent = `Token ${at}${many}, ${JSON.stringify(spans[piece].textContent)}: kept by ` +
    `${(100 * sum / layers).toFixed(1)} % of all heads` + (at < data.dense ? ", dense" : "") + ". By layer, 0 on the left:";
  tip.hidden = false;
  bars.width = bars.clientWidth;
  bars.height = bars.clientHeight;
  const context = bars.getContext("2d"), width = bars.width / layers;
  for (let layer = 0; layer < layers; layer++) {
    const height = share[layer * tokens + at] / 255 * (bars.height - 1);
    context.fillStyle = color("--line");
    context.fillRect(layer * width + 1, bars.height - 1, width - 2, 1);
    context.fillStyle = color("--hot");
    context.fillRect(layer * width + 1, bars.height - 1 - height, width - 2, height);
  }
}

document.getElementById("text").addEventListener("mouseover", event => {
  if (order.has(event.target)) show(order.get(event.target));
});
function tokenUnder(event) {
  const box = map.getBoundingClientRect();
  return Math.min(tokens - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * tokens)));
}
map.addEventListener("mousemove", event => show(pieceAt(tokenUnder(event)), tokenUnder(event)));
map.addEventListener("click", event => spans[pieceAt(tokenUnder(event))].scrollIntoView({block: "center"}));
addEventListener("resize", drawMap);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
drawMap();
