"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const find = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  find("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Groups of buttons of which one is pressed; the choice becomes an attribute of the page.
  for (const key of ["axis", "size"]) {
    const buttons = all(`button[data-${key}]`);
    for (const button of buttons) {
      button.addEventListener("click", () => {
        root.dataset[key] = button.dataset[key];
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      });
    }
  }

  const rows = all(".row");
  const box = find("#box");
  if (!rows.length) return;
  const control = (name) => find("#" + name);
  const setting = (name) => (control(name) ? control(name).value : "");
  const kinds = control("score") ? control("score").options.length : 0;
  const gains = new Map(rows.map((row) => [row, row.dataset.g.split(",")]));
  const texts = new Map(rows.map((row) => [row, find(".prompt", row).textContent.toLowerCase()]));

  function gainOf(row, model, score) {
    const text = gains.get(row)[model * kinds + score];
    return text ? Number(text) : null;
  }

  function signed(value) {
    const text = Math.abs(value).toFixed(Math.abs(value) < 10 ? 3 : 2);
    return Number(text) === 0 ? text : (value < 0 ? "\u2212" : "+") + text;
  }

  function sortRows() {
    const order = setting("sort") || "order";
    const [model, score] = [Number(setting("model")), Number(setting("score"))];
    const value = (row) => {
      const gain = order === "order" ? Number(row.dataset.n) : gainOf(row, model, score);
      if (gain === null) return Infinity; // rows without a gain stand last
      return order === "down" ? -gain : gain;
    };
    const sorted = [...rows].sort((a, b) => value(a) - value(b) || a.dataset.n - b.dataset.n);
    find("#rows").append(...sorted);
  }

  const lower = new Set(all("#score option").filter((o) => "lower" in o.dataset).map((o) => o.index));

  function showGains() {
    const score = Number(setting("score"));
    for (const row of rows) {
      for (const badge of all(".badge", row)) {
        const gain = gainOf(row, Number(badge.dataset.m), score);
        const number = find("b", badge);
        number.textContent = gain === null ? "" : signed(gain);
        const better = gain === null || Math.abs(gain) < 5e-7 ? 0 : lower.has(score) ? -gain : gain;
        number.className = better > 0 ? "up" : better < 0 ? "down" : "same";
      }
    }
  }

  function filterRows() {
    const wanted = setting("search").toLowerCase().split(/\s+/).filter(Boolean);
    const category = setting("category");
    let count = 0;
    for (const row of rows) {
      const fits =
        (category === "" || row.dataset.c === category) &&
        wanted.every((word) => texts.get(row).includes(word));
      row.hidden = !fits;
      count += fits;
    }
    find("#count").textContent = String(count);
    find("#none").hidden = count > 0;
  }

  control("tools").addEventListener("submit", (event) => event.preventDefault());
  control("search").addEventListener("input", filterRows);
  if (control("category")) control("category").addEventListener("change", filterRows);
  for (const name of ["sort", "score", "model"]) {
    if (!control(name)) continue;
    control(name).addEventListener("change", () => {
      if (name === "score") showGains();
      sortRows();
    });
  }

  // The enlarged picture. `current` is the cell on show.
  let current = null;
  const names = all(".names [data-k]").map((name) => name.textContent.trim().replace(/\s+/g, " "));

  function show(cell) {
    const medium = find("img, video", cell);
    if (!medium) return;
    current = cell;
    const copy = medium.cloneNode(true);
    copy.removeAttribute("loading");
    if (copy.tagName === "VIDEO") copy.controls = copy.autoplay = true;
    find(".stage", box).replaceChildren(copy);
    const row = cell.closest(".row");
    const negative = find(".negative", row);
    find(".where", box).textContent = names[Number(cell.dataset.k)];
    find(".what", box).textContent = find(".prompt", row).textContent;
    find(".more", box).textContent =
      cell.dataset.s + (negative ? ", " + negative.textContent : "");
    find(".values", box).replaceChildren(find("dl", cell).cloneNode(true));
    const why = find(".why", cell);
    find(".reasons", box).replaceChildren(...(why ? why.cloneNode(true).childNodes : []));
    if (!box.open) box.showModal();
  }

  function go(direction) {
    if (!current) return;
    const line = current.closest(".line");
    if (direction === "left" || direction === "right") {
      const cells = all(".cell", line).filter((cell) => find("img, video", cell));
      const step = direction === "left" ? cells.length - 1 : 1;
      show(cells[(cells.indexOf(current) + step) % cells.length]);
      return;
    }
    const lines = all("#rows .row:not([hidden]) .line");
    const step = direction === "up" ? -1 : 1;
    for (let k = lines.indexOf(line) + step; k >= 0 && k < lines.length; k += step) {
      const same = all(".cell", lines[k]).find((cell) => cell.dataset.k === current.dataset.k);
      if (same && find("img, video", same)) return show(same);
    }
  }

  find("#rows").addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) show(button.closest(".cell"));
  });
  box.addEventListener("click", (event) => {
    const button = event.target.closest("[data-go]");
    if (button && button.dataset.go !== "close") return go(button.dataset.go);
    if (button || (event.target.closest(".stage") && event.target.tagName !== "VIDEO")) box.close();
  });
  box.addEventListener("keydown", (event) => {
    const direction = event.key.startsWith("Arrow") ? event.key.slice(5).toLowerCase() : "";
    if (!direction) return;
    event.preventDefault();
    go(direction);
  });
  box.addEventListener("close", () => {
    find(".stage", box).replaceChildren();
    const button = current && find(".open", current);
    if (button) button.focus();
    current = null;
  });

  // Clips of one row run together while they are on the screen.
  const clips = all(".open video");
  if (clips.length && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
    const watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) target.play().catch(() => {});
        else target.pause();
      }
    });
    for (const clip of clips) watcher.observe(clip);
  }
})();
