// Of a flame graph of hillfire: a click widens a frame, Ctrl-F searches, Esc shows all again.
const group = document.getElementById("flames");
const width = Number(group.dataset.width);
const total = Number(group.dataset.total);
const said = document.getElementById("found");
const help = said.textContent;
const frames = [...group.querySelectorAll("g.f")].map((node) => ({
  node, box: node.querySelector("rect"), text: node.querySelector("text"),
  name: node.dataset.n, x: Number(node.dataset.x), w: Number(node.dataset.w),
  level: Number(node.dataset.l),
}));

function label(frame, w) {
  const letters = Math.floor((w - 4) / 6.7);
  if (frame.name.length <= letters) return frame.name;
  return letters > 3 ? frame.name.slice(0, letters - 1) + "…" : "";
}

function show(from, to, level) {
  const scale = width / (to - from);
  for (const frame of frames) {
    const inside = frame.x < to - 0.001 && frame.x + frame.w > from + 0.001;
    frame.node.style.display = inside ? "" : "none";
    if (!inside) continue;
    const left = Math.max(0, (frame.x - from) * scale);
    const right = Math.min(width, (frame.x + frame.w - from) * scale);
    frame.box.setAttribute("x", left);
    frame.box.setAttribute("width", Math.max(0.3, right - left - 0.5));
    frame.box.style.opacity = frame.level < level ? 0.5 : 1;
    frame.text.setAttribute("x", left + 3);
    frame.text.textContent = label(frame, right - left);
  }
}

function search(word) {
  let pattern = null;
  try { pattern = word ? new RegExp(word, "i") : null; } catch (error) { pattern = null; }
  const hit = [];
  for (const frame of frames) {
    const found = pattern !== null && pattern.test(frame.name);
    frame.box.style.stroke = found ? "#d00" : "";
    frame.box.style.strokeWidth = found ? 1.5 : "";
    if (found) hit.push(frame);
  }
  // A frame within another that was found is not counted twice.
  hit.sort((a, b) => a.x - b.x || b.w - a.w);
  let end = -1, sum = 0;
  for (const frame of hit) {
    if (frame.x >= end - 0.001) { sum += frame.w; end = frame.x + frame.w; }
  }
  const part = (100 * sum / width).toFixed(1);
  said.textContent = pattern === null ? help : `/${word}/ is in ${part} % of ${total} samples`;
}

for (const frame of frames) {
  frame.node.style.cursor = "pointer";
  frame.node.addEventListener("click", () => show(frame.x, frame.x + frame.w, frame.level));
}
window.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { show(0, width, 0); search(""); }
  if (event.key === "f" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    search(prompt("Which frames? (a regular expression)") || "");
  }
});
