/**
 * Draws a story: one function for each kind of block. No library, nothing loaded; texts are always set as text.
 * The page of `mezzotint explain` holds a copy of this file, the server's page imports it.
 */

const HEAT = [[9, 7, 30], [72, 20, 104], [170, 44, 92], [237, 105, 37], [251, 210, 90], [252, 255, 220]];
const WORD_HUES = [210, 28, 130, 330, 265, 50, 180, 0, 90, 300];

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name === "style") node.style.cssText = value ?? ""; // as an attribute, the server's policy forbids it
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function mix(unit) {
  const place = Math.max(0, Math.min(1, unit)) * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((value, i) => value + (HEAT[low + 1][i] - value) * (place - low));
}

function diverging(unit) {
  // -1 … 1: blue, background, orange; the strength is opacity, in the dark so little that numbers stay legible on it
  const hue = unit < 0 ? "66, 133, 244" : "242, 119, 38";
  const strength = Math.min(1, Math.abs(unit));
  return `light-dark(rgba(${hue}, ${strength.toFixed(3)}), rgba(${hue}, ${(0.55 * strength).toFixed(3)}))`;
}

function bytes(block) {
  const text = atob(block.data);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}

let room = 720; // CSS pixels that a plot may take


function heading(text) {
  return text ? h("h3", {}, text) : null;
}

const blocks = {
  text: (block) => h("p", { class: "aside" }, block.text),

  pictures: (block) =>
    h("figure", { class: "block" }, heading(block.title),
      h("div", { class: "row" }, block.items.map((item) => pictureOf(item, block.side)))),

  table: (block) => {
    const head = block.columns.some(Boolean) ? h("thead", {}, h("tr", {}, block.columns.map((c) => h(c ? "th" : "td", {}, c)))) : null;
    const rows = block.rows.map((row) =>
      h("tr", {}, row.map((cell) => h("td", { class: typeof cell === "number" ? "number" : null }, cell === null ? "" : String(cell)))));
    const whole = h("div", { class: "scroll" }, h("table", {}, head, h("tbody", {}, rows)));
    if (block.rows.length <= 12) return h("figure", { class: "block" }, heading(block.title), whole);
    return h("details", { class: "block fold" }, h("summary", {}, `${block.title} (${block.rows.length})`), whole);
  },

  matrix: (block) => {
    const span = block.high - block.low || 1;
    const unit = (value) => (block.low < 0 ? value / Math.max(-block.low, block.high) : 0.06 + (0.9 * (value - block.low)) / span);
    const isLong = Math.max(...block.columns.map((c) => c.length)) > 8 && block.columns.length > 3;
    const head = h("tr", {}, h("td"), block.columns.map((c) => h("th", { class: isLong ? "tilted" : null }, h("span", { title: c }, isLong && c.length > 18 ? `${c.slice(0, 17)}…` : c))));
    const rows = block.values.map((row, i) => h("tr", {}, h("th", { scope: "row" }, block.rows[i]),
      row.map((value, j) => h("td", {
        style: `background:${diverging(unit(value))}`, title: `${block.rows[i]} and ${block.columns[j]}: ${value}`,
      }, value.toFixed(2)))));
    return h("figure", { class: "block" }, heading(block.title),
      h("div", { class: "scroll" }, h("table", { class: isLong ? "matrix long" : "matrix" }, h("thead", {}, head), h("tbody", {}, rows))));
  },

  strip: (block) => {
    // named rows are tall and labelled, the unnamed ones behind them thin
    const [rows, columns] = block.shape, data = bytes(block);
    const said = h("output", { class: "note" }, "Each line is one token, each cell one number: orange above zero, blue below. Point at a cell.");
    const named = block.rows.filter((name) => name && name !== "·").length || 0;
    const part = (from, to, height) => {
      const canvas = h("canvas", { width: columns, height: to - from, class: "strip", style: `height:${(to - from) * height}px`, role: "img", "aria-label": block.title });
      const context = canvas.getContext("2d"), image = context.createImageData(columns, to - from);
      for (let i = 0; i < (to - from) * columns; i++) {
        const unit = data[from * columns + i] / 127.5 - 1;
        image.data.set(unit > 0 ? [242, 119, 38, unit * 255] : [66, 133, 244, -unit * 255], i * 4);
      }
      context.putImageData(image, 0, 0);
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        const row = from + Math.min(to - from - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * (to - from))));
        const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
        const value = block.low + (data[row * columns + column] / 255) * (block.high - block.low);
        said.textContent = `slot ${row} ${row < named ? `“${block.rows[row]}”` : "(padding)"}, number ${column}: ${value.toFixed(2)}`;
      });
      return canvas;
    };
    const labels = (names, height) => h("div", { class: "labels" }, names.map((name) => h("span", { style: `height:${height}px` }, name)));
    const tall = named > 24 ? 11 : 20;
    const whole = h("div", { class: "strips" },
      named ? [labels(block.rows.slice(0, named), tall), part(0, named, tall)] : null,
      named < rows ? [labels([named ? "padding" : ""], (rows - named) * (named ? 2 : 9)), part(named, rows, named ? 2 : 9)] : null);
    return h("figure", { class: "block" }, heading(block.title), whole, said);
  },

  histogram: (block) => {
    const width = room, height = 190, bins = block.density.length, top = Math.max(0.45, ...block.density) * 1.05;
    const x = (value) => ((value + block.reach) / (2 * block.reach)) * width;
    const y = (value) => height - 22 - (value / top) * (height - 30);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": block.title });
    block.density.forEach((value, i) => svg.append(s("rect", {
      x: (i * width) / bins + 1, y: y(value), width: width / bins - 2, height: Math.max(0, y(0) - y(value)), class: "bin",
    })));
    const curve = [...Array(81).keys()].map((i) => {
      const value = -block.reach + (i / 80) * 2 * block.reach;
      return `${x(value).toFixed(1)},${y(Math.exp(-value * value / 2) / Math.sqrt(2 * Math.PI)).toFixed(1)}`;
    });
    svg.append(s("polyline", { points: curve.join(" "), class: "curve c1" }));
    for (let tick = -3; tick <= 3; tick++) svg.append(textAt(x(tick), height - 6, String(tick), "middle"));
    return h("figure", { class: "block" }, heading(block.title), svg, h("figcaption", { class: "note" }, block.note));
  },

  curves: (block) => curvesOf(block),

  bars: (block) => {
    const most = Math.max(...block.items.map((item) => Math.abs(item.value)), 1e-12);
    return h("figure", { class: "block" }, heading(block.title), h("div", { class: "bars" }, block.items.map((item) => [
      h("span", {}, item.label),
      h("span", { class: "track" }, h("span", { class: "bar", style: `width:${(100 * Math.abs(item.value)) / most}%` })),
      h("span", { class: "number" }, item.note),
    ])));
  },

  slider: (block) => {
    const middle = Math.floor(block.items.length / 2);
    const image = h("img", { class: "pixel", alt: "" }), said = h("output", {}, "");
    const range = h("input", { type: "range", min: 0, max: block.items.length - 1, value: middle, "aria-label": block.what });
    const show = () => {
      const item = block.items[Number(range.value)];
      image.src = item.src;
      image.alt = item.label;
      said.textContent = item.label;
    };
    range.addEventListener("input", show);
    show();
    return h("figure", { class: "block slide" }, heading(block.title), h("div", { class: "stage" }, image),
      h("label", { class: "control" }, h("span", {}, block.what), range, said));
  },

  tokens: (block) => {
    const hue = (word) => (word === null ? "var(--line)" : `hsl(${WORD_HUES[word % WORD_HUES.length]} 70% 50%)`);
    const chips = block.chips.map((chip) => h("span", { class: "chip", style: `--tone:${hue(chip.word)}` },
      h("b", {}, chip.piece), h("small", {}, `${chip.id}${chip.weight === 1 ? "" : ` × ${chip.weight}`}`)));
    const ruler = [...Array(block.slots).keys()].map((slot) => {
      const chip = block.chips[slot];
      return h("i", { style: chip ? `--tone:${hue(chip.word)}` : null, class: chip ? "used" : null, title: chip ? `${slot}: ${chip.piece}` : `${slot}: padding` });
    });
    return h("figure", { class: "block" },
      h("div", { class: "chips" }, chips),
      h("div", { class: "ruler", role: "img", "aria-label": `${block.used} of ${block.slots} slots are used` }, ruler),
      h("figcaption", { class: "note" }, `${block.used} of ${block.slots} slots used; pieces of one word have one colour; the small number is the place in the list.`),
      block.dropped.length ? h("p", { class: "warn" }, `Did not fit and was left out: ${block.dropped.join(" ")}`) : null);
  },

  ladder: (block) => {
    const most = Math.max(...block.rows.map((row) => row.shape[0]));
    const high = Math.max(...block.rows.map((row) => row.shape[1]));
    return h("details", { class: "block fold", open: "" }, h("summary", {}, block.title), h("div", { class: "ladder" },
      block.rows.map((row) => [
        h("img", { src: row.src, alt: "", class: "pixel", style: `width:${Math.max(14, 44 * row.shape[1] / high)}px` }),
        h("span", { title: row.name }, placeName(row.name), h("small", {}, ` ${row.shape.join(" × ")}`)),
        h("span", { class: "track" }, h("span", { class: "bar", style: `width:${(100 * row.shape[0]) / most}%` })),
        h("span", { class: "number" }, `${row.ms} ms`),
      ])), h("p", { class: "note" }, "Pictures: mean strength at every place, as large as the level. Bars: number of channels."));
  },

  drawing: (block) => {
    const image = h("img", { src: block.src, alt: block.title, class: "drawing" });
    return h("figure", { class: "block" }, heading(block.title), h("div", { class: "scroll" }, image));
  },

  pair: (block) => {
    const sides = block.sides.map((side) => h("div", {}, h("h3", { class: "side" }, side.label), side.blocks.map(drawn)));
    const whole = h("div", { class: "pair block" }, sides);
    whole.addEventListener("stepped", (event) => {
      for (const range of whole.querySelectorAll("input.scrub")) {
        if (range !== event.target) {
          const at = Math.round((event.detail * Number(range.max)));
          if (Number(range.value) !== at) {
            range.value = at;
            range.dispatchEvent(new Event("moved"));
          }
        }
      }
    });
    return whole;
  },

  steps: (block) => stepsOf(block),
};

function pictureOf(item, side) {
  const scale = side / Math.max(item.width, item.height);
  return h("figure", { class: "picture", style: `width:${side}px` },
    h("img", { src: item.src, alt: item.label, class: scale > 1 ? "pixel" : null, width: Math.round(item.width * scale), height: Math.round(item.height * scale) }),
    h("figcaption", {}, item.label, item.note ? h("small", {}, item.note) : null));
}

function textAt(x, y, text, anchor, name = "tick") {
  const node = s("text", { x, y, class: name, "text-anchor": anchor });
  node.textContent = text;
  return node;
}

function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.01 || size >= 10000)) return value.toExponential(0);
  return String(Number(value.toPrecision(3)));
}

function ticksOf(low, high, isLog) {
  if (isLog) {
    const powers = [];
    for (let power = Math.ceil(low - 1e-9); power <= Math.floor(high + 1e-9); power++) powers.push(power);
    if (powers.length >= 2) return powers;
  }
  const raw = (high - low) / 4, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= raw * 0.8);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 0.02; tick++) found.push(tick * step);
  return found;
}

function curvesOf(block) {
  const width = room, height = width < 480 ? 240 : 280, left = 46, bottom = 36, top = 10, right = 20;
  const plain = block.lines.filter((line) => !line.dots || !block.chosen);
  const options = block.chosen ? block.lines.filter((line) => line.dots) : [];
  const all = block.lines.flatMap((line) => line.points);
  const scaled = (value) => (block.log ? Math.log10(Math.max(value, 1e-6)) : value);
  const xs = all.map((point) => point[0]), ys = all.map((point) => scaled(point[1]));
  const ends = { x: [Math.min(...xs), Math.max(...xs)], y: [Math.min(...ys), Math.max(...ys)] };
  if (!block.log && ends.y[0] > 0 && ends.y[0] < 0.5 * ends.y[1]) ends.y[0] = 0;
  for (const side of [ends.x, ends.y]) if (side[0] === side[1]) side[1] = side[0] + 1;
  const x = (value) => left + ((value - ends.x[0]) / (ends.x[1] - ends.x[0])) * (width - left - right);
  const y = (value) => height - bottom - ((scaled(value) - ends.y[0]) / (ends.y[1] - ends.y[0])) * (height - bottom - top);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": block.title });
  for (const tick of ticksOf(...ends.y, block.log)) {
    const up = block.log ? 10 ** tick : tick;
    svg.append(s("line", { x1: left, x2: width - right, y1: y(up), y2: y(up), class: "grid" }), textAt(left - 6, y(up) + 4, short(up), "end"));
  }
  const isWhole = xs.every(Number.isInteger);
  for (const tick of ticksOf(...ends.x, false).filter((tick) => !isWhole || Number.isInteger(tick))) svg.append(textAt(x(tick), height - bottom + 16, short(tick), "middle"));
  svg.append(textAt((left + width - right) / 2, height - 4, block.x, "middle", "axis"));
  plain.forEach((line, i) => {
    const points = line.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    svg.append(s("polyline", { points, class: `curve c${i % 6}` }));
    if (line.dots) for (const point of line.points) svg.append(s("circle", { cx: x(point[0]), cy: y(point[1]), r: 3.5, class: `dot c${i % 6}` }));
  });
  const legend = h("p", { class: "legend" }, plain.map((line, i) => h("span", { class: `key c${i % 6}` }, line.name)));
  const dots = s("g", {});
  svg.append(dots);
  const up = h("p", { class: "note" }, `↑ ${block.y}${block.log ? ", logarithmic" : ""}`);
  const parts = [heading(block.title), up, svg, legend];
  if (options.length) {
    const said = h("output", {}, ""), range = h("input", { type: "range", min: 0, max: options.length - 1, value: 0, "aria-label": "spacing" });
    const show = () => {
      const line = options[Number(range.value)];
      dots.replaceChildren(...line.points.map((point) => s("circle", { cx: x(point[0]), cy: y(point[1]), r: 5, class: "dot c1" })));
      said.textContent = `${line.name}: ${line.points.length} levels`;
    };
    range.addEventListener("input", show);
    show();
    parts.push(h("label", { class: "control" }, h("span", {}, "spacing"), range, said));
  }
  return h("figure", { class: "block" }, parts);
}

function mapCanvas(data, start, rows, columns, isOverlay) {
  const canvas = h("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const unit = data[start + i] / 255, [r, g, b] = mix(isOverlay ? 0.25 + 0.75 * unit : unit);
    image.data.set([r, g, b, isOverlay ? 235 * Math.min(1, 1.4 * unit) : 255], i * 4);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** A name within the U-Net for people, as "down 2, block 1", and which layer it is of several. */
function placeName(name, names = []) {
  const found = /^(?:(\w+)\.)?(down|up|middle)(?:\.(\d+)\.(?:blocks\.(\d+)|resample))?(?:\.attn\.layers\.(\d+))?$/.exec(name);
  if (!found) return { conv_in: "first convolution", conv_out: "last convolution" }[name] ?? name;
  const [, network, way, level, block, layer] = found;
  const counted = (place) => Number(place) + 1;
  const part = block === undefined ? { down: "to half the size", up: "to twice the size" }[way] : `block ${counted(block)}`;
  const stem = name.replace(/\d+$/, "");
  const isOneOfMany = layer !== undefined && names.filter((other) => other.replace(/\d+$/, "") === stem).length > 1;
  return [network, way, level && `${counted(level)}, ${part}`, isOneOfMany && `layer ${counted(layer)}`].filter(Boolean).join(" ");
}

function stepsOf(block) {
  const frames = block.frames, maps = block.maps && block.maps.words.length ? block.maps : null;
  const held = maps && { steps: bytes(maps.steps), layers: bytes(maps.layers), heads: bytes(maps.heads) };
  let word = null, pinned = null;

  const picture = h("img", { class: "pixel under", alt: "the estimate of the finished picture" });
  const overlay = h("canvas", { class: "over", width: 1, height: 1 });
  const stage = h("div", { class: "stage large", tabindex: maps ? 0 : null }, picture, overlay);
  const said = h("output", { class: "step" }, "");
  const range = h("input", { type: "range", class: "scrub", min: 0, max: frames.length - 1, value: frames.length - 1, "aria-label": "step" });
  const thumbs = {
    x: h("img", { class: "pixel", alt: "the noisy latent" }),
    noise: h("img", { class: "pixel", alt: "the noise that is seen" }),
    change: frames.some((frame) => frame.change) ? h("img", { class: "pixel", alt: "what guidance changed" }) : null,
  };
  const labels = { x: "goes in: the noisy latent", noise: "the noise the network sees", change: "what guidance changed: bright much" };
  const side = h("div", { class: "thumbs" }, Object.entries(thumbs).filter(([, node]) => node).map(([name, node]) =>
    h("figure", { class: "picture" }, node, h("figcaption", {}, labels[name]))));
  const ranking = h("div", { class: "ranking" });
  const details = h("div", { class: "layers" });

  const span = h("output", { class: "note span" }, "");
  const averaged = h("input", { type: "checkbox", onchange: () => draw() });
  const meanMap = (group) => {
    // the mean over steps, in the units of each step's map
    const [count, groups, rows, columns] = maps.steps.shape, size = rows * columns, total = new Float32Array(size);
    for (let step = 0; step < count; step++) for (let i = 0; i < size; i++) total[i] += held.steps[(step * groups + group) * size + i];
    return total.map((value) => value / count);
  };

  const at = () => Number(range.value);
  const show = () => {
    const frame = frames[at()];
    picture.src = frame.x0;
    for (const [name, node] of Object.entries(thumbs)) if (node && frame[name]) node.src = frame[name];
    said.textContent = `step ${frame.step + 1}: sigma ${short(frame.sigma)}, t ${frame.t}, ${frame.ms} ms`;
    film.querySelectorAll("button").forEach((button, i) => {
      button.setAttribute("aria-pressed", i === at());
      if (i === at()) film.scrollLeft = button.offsetLeft - film.offsetLeft - film.clientWidth / 2 + button.clientWidth / 2;
    });
    draw();
  };
  const draw = () => {
    if (word === null) {
      stage.classList.remove("dimmed");
      overlay.hidden = true;
      span.textContent = "";
      return;
    }
    const [, groups, rows, columns] = maps.steps.shape, size = rows * columns;
    const own = averaged.checked ? meanMap(word) : held.steps.subarray((at() * groups + word) * size, (at() * groups + word + 1) * size);
    const low = Math.min(...own), high = Math.max(...own);
    const small = mapCanvas(Float32Array.from(own, (value) => (255 * (value - low)) / Math.max(high - low, 1e-9)), 0, rows, columns, true);
    const percent = (value) => ((100 * value * maps.steps.highs[word]) / 255).toFixed(1);
    span.textContent = `“${maps.words[word]}” gets ${percent(low)} % of the attention where it is dark, ${percent(high)} % where it is bright`;
    overlay.hidden = false;
    stage.classList.add("dimmed");
    overlay.width = columns * 8;
    overlay.height = rows * 8;
    const context = overlay.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.clearRect(0, 0, overlay.width, overlay.height);
    context.drawImage(small, 0, 0, overlay.width, overlay.height);
  };
  const choose = (chosen) => {
    word = chosen;
    for (const button of chips.querySelectorAll("button")) button.setAttribute("aria-pressed", Number(button.dataset.word) === word);
    draw();
  };
  const pin = (chosen) => {
    pinned = pinned === chosen ? null : chosen;
    choose(pinned);
    spread();
  };
  const spread = () => {
    if (pinned === null) {
      details.replaceChildren(h("p", { class: "note" }, "Click a word to keep it, and to see what every layer and every head makes of it."));
      return;
    }
    const { layers, heads, words } = maps, [count, groups, rows, columns] = layers.shape;
    const [, , small, narrow] = heads.shape;
    let first = 0;
    const cells = [...Array(count).keys()].map((layer) => {
      const mine = first;
      first += heads.counts[layer];
      const canvas = mapCanvas(held.layers, (layer * groups + pinned) * rows * columns, rows, columns, false);
      canvas.className = "pixel map";
      const button = h("button", { type: "button", class: "layer", title: `${placeName(layers.names[layer], layers.names)}: show its ${heads.counts[layer]} heads`, onclick: () => {
        const drawn = [...Array(heads.counts[layer]).keys()].map((head) => {
          const one = mapCanvas(held.heads, ((mine + head) * groups + pinned) * small * narrow, small, narrow, false);
          one.className = "pixel map";
          return h("figure", { class: "picture" }, one, h("figcaption", {}, `head ${head + 1}`));
        });
        row.replaceChildren(h("h3", {}, `The ${heads.counts[layer]} heads of ${placeName(layers.names[layer], layers.names)}`), h("div", { class: "row tight" }, drawn));
      } }, canvas, h("small", {}, placeName(layers.names[layer], layers.names)), h("small", {}, layers.sizes[layer]));
      return button;
    });
    const row = h("div", { class: "heads" }, h("p", { class: "note" }, "Click a layer to see its heads."));
    const share = Math.round(1000 * maps.steps.shares[pinned]) / 10;
    details.replaceChildren(
      h("h3", {}, `“${words[pinned]}” in every layer, mean over all steps`),
      h("p", { class: "note" }, `Brightest: ${(100 * maps.layers.highs[pinned]).toFixed(1)} % of a place's attention in one layer. All places and layers together give this word ${share} % of their attention; at every place the shares of all words, ‹start› and ‹end› sum to 1.`),
      h("div", { class: "row tight" }, cells), row);
  };
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    const [, , rows, columns] = maps.steps.shape;
    const r = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
    const c = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
    rank(r, c, `Row ${r + 1}, column ${c + 1}: share of each word`);
  };
  const rank = (r, c, said) => {
    const [, groups, rows, columns] = maps.steps.shape;
    const shares = maps.words.map((name, group) => ({
      name, group, share: (held.steps[(at() * groups + group) * rows * columns + r * columns + c] / 255) * maps.steps.highs[group],
    }));
    const inner = shares.slice(1, -1).sort((a, b) => b.share - a.share).slice(0, 6);
    const most = Math.max(...inner.map((item) => item.share), 1e-9);
    ranking.replaceChildren(h("p", { class: "note" }, said),
      h("div", { class: "bars" }, inner.map((item) => [
        h("span", {}, item.name), h("span", { class: "track" }, h("span", { class: "bar", style: `width:${(100 * item.share) / most}%` })),
        h("span", { class: "number" }, `${(100 * item.share).toFixed(1)} %`)])),
      h("p", { class: "note" }, `The rest rests on ‹start› (${(100 * shares[0].share).toFixed(0)} %) and ‹end› (${(100 * shares.at(-1).share).toFixed(0)} %).`));
  };

  const film = h("div", { class: "film" }, frames.map((frame, i) => h("button", {
    type: "button", title: `step ${frame.step + 1}, sigma ${short(frame.sigma)}`, onclick: () => {
      range.value = i;
      range.dispatchEvent(new Event("input"));
    },
  }, h("img", { src: frame.x, alt: "", class: "pixel" }), h("img", { src: frame.x0, alt: `estimate at step ${frame.step + 1}`, class: "pixel" }), h("small", {}, String(frame.step + 1)))));
  let playing = null;
  const play = h("button", { type: "button", class: "play", onclick: () => {
    if (playing) {
      clearInterval(playing);
      playing = null;
      play.textContent = "▶ play";
      return;
    }
    if (at() === frames.length - 1) range.value = 0;
    play.textContent = "❚❚ stop";
    show();
    playing = setInterval(() => {
      if (at() >= frames.length - 1) return play.click();
      range.value = at() + 1;
      range.dispatchEvent(new Event("input"));
    }, 350);
  } }, "▶ play");
  const chips = h("div", { class: "chips" }, maps ? maps.words.map((name, i) => h("button", {
    type: "button", class: "chip", "data-word": i, "aria-pressed": "false",
    style: `--tone:${i === 0 || i === maps.words.length - 1 ? "var(--line)" : `hsl(${WORD_HUES[(i - 1) % WORD_HUES.length]} 70% 50%)`}`,
    onpointerenter: () => choose(i), onpointerleave: () => choose(pinned), onfocus: () => choose(i), onblur: () => choose(pinned), onclick: () => pin(i),
  }, h("b", {}, name))) : []);
  range.addEventListener("input", () => {
    show();
    range.dispatchEvent(new CustomEvent("stepped", { bubbles: true, detail: frames.length > 1 ? at() / (frames.length - 1) : 0 }));
  });
  range.addEventListener("moved", show);
  if (maps) {
    stage.addEventListener("pointermove", point);
    stage.addEventListener("pointerdown", point);
    rank(maps.steps.shape[2] >> 1, maps.steps.shape[3] >> 1, "In the middle, share of each word; point at the picture for any other place");
    spread();
  }
  const whole = h("figure", { class: "block steps" },
    h("h3", {}, "The estimate of the finished picture at each step"),
    h("div", { class: "theatre" },
      h("div", {}, stage, h("div", { class: "control" }, play, range), said),
      h("div", { class: "beside" }, maps ? h("div", {}, h("h3", {}, "Where each word acts"), chips, span, h("label", { class: "check" }, averaged, " mean over all steps")) : null, maps ? ranking : null, side)),
    h("h3", {}, "The film: what goes in (above), what the network expects to come out (below)"), film,
    h("p", { class: "note" }, block.how), maps ? details : null);
  show();
  return whole;
}

// the whole in one picture: each box leads to its section
function flowOf(flow) {
  const node = (to, name, children, more = "") => h("a", { href: `#${to}`, class: `node ${more}` }, h("b", {}, name), children);
  const arrow = (more = "") => h("span", { class: `arrow ${more}`, "aria-hidden": "true" }, "→");
  const image = (src, alt) => h("img", { src, alt, class: "pixel" });
  return h("div", { class: "whole", role: "group", "aria-label": "From words to picture" },
    node("tokens", "words", h("small", {}, `${flow.tokens} tokens of ${flow.slots}`), "words"), arrow("a1"),
    node("numbers", flow.tower, h("small", {}, flow.context), "tower"), arrow("a2"),
    node("noise", "noise", [image(flow.noise, "the seed's noise"), h("small", {}, `seed ${flow.seed}`)], "noise"), arrow("a3"),
    node("steps", "U-Net", [h("span", { class: "loop" }, `${flow.steps} steps ↻`), h("small", {}, `takes noise away, guided × ${flow.guidance}`)], "unet"), arrow("a4"),
    node("latent", "latent", [image(flow.latent, "the last latent"), h("small", {}, flow.shape)], "latent"), arrow("a5"),
    node("latent", "decoder", h("small", {}, "paints the pixels"), "decoder"), arrow("a6"),
    node("judged", "picture", [image(flow.picture, "the picture"), h("small", {}, flow.size)], "result"));
}

function drawn(block) {
  const draw = blocks[block.kind];
  if (!draw) throw new Error(`no block of kind ${block.kind}`);
  return draw(block);
}

function sectionOf(section, number) {
  const code = section.code.map((part) => h("div", { class: "code" },
    h("div", { class: "where" }, `${part.file}:${part.line}`), h("pre", {}, h("code", {}, part.text))));
  const lines = section.code.reduce((sum, part) => sum + part.text.split("\n").length, 0);
  return h("section", { id: section.id, "aria-labelledby": `${section.id}-title` },
    h("header", {}, h("span", { class: "count" }, `${number}`), h("h2", { id: `${section.id}-title` }, section.title)),
    h("p", { class: "lead" }, section.lead),
    section.formula ? h("p", { class: "formula" }, section.formula.replace(/;\s{2,}/g, "\n")) : null,
    section.blocks.map(drawn),
    h("footer", {},
      section.shapes.length || section.ms !== null ? h("p", { class: "facts" },
        section.shapes.map((shape) => h("span", { class: "fact" }, shape)),
        section.ms === null ? null : h("span", { class: "fact time" }, `${section.ms} ms`)) : null,
      code.length ? h("details", { class: "fold", open: section.id === "code" ? "" : null }, h("summary", {}, lines === 1 ? "The line that did this" : `The ${lines} lines that did this`), code) : null));
}

/** Fill `root` with a story as data. */
export function renderStory(root, story) {
  room = Math.max(300, Math.min(720, root.clientWidth - 56));
  const flow = h("nav", { class: "flow", "aria-label": "sections" }, story.sections.map((section, i) =>
    h("a", { href: `#${section.id}` }, h("span", { class: "count" }, String(i + 1)), section.title)));
  const known = new Set(story.sections.map((section) => section.id));
  const whole = story.flow ? flowOf(story.flow) : null;
  if (whole) for (const link of whole.querySelectorAll("a")) if (!known.has(link.hash.slice(1))) link.href = "#latent";
  const parts = [
    h("header", { class: "top" },
      story.image ? h("img", { src: story.image, alt: story.title, class: "pixel cover" }) : null,
      h("div", {}, h("p", { class: "kicker" }, story.subtitle), h("h1", {}, story.title),
        h("p", { class: "facts" }, story.facts.map(([name, value]) => h("span", { class: "fact" }, h("small", {}, name), ` ${value}`))))),
    whole, flow,
    ...story.sections.map((section, i) => sectionOf(section, i + 1))];
  root.replaceChildren(...parts.filter(Boolean));
}
