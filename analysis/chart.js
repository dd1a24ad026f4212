// Accuracy against cost, drawn by plotly from the JSON beside each chart; see interactive.py.
// The still picture stays in the page for print and for readers without scripts.
'use strict';
(() => {
  if (typeof Plotly === 'undefined') return;
  const GLYPHS = {circle: '●', square: '■', diamond: '◆', 'triangle-down': '▼'};
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Scales: numbers to places on an axis that plotly takes for linear.
  const scales = {
    linear: () => ({there: x => x, back: x => x}),
    // Logarithmic, but 0 has a place: below `first` the axis is linear.
    cost: first => ({
      there: x => x < first ? 0.4 * x / first : 0.4 + Math.log10(x / first),
      back: x => x < 0.4 ? first * x / 0.4 : first * 10 ** (x - 0.4),
    }),
    // Logarithmic in the error, so that 99 and 99.5 % stand apart; 100 % has a place.
    accuracy: () => ({
      there: x => -Math.log10(Math.max(100.5 - x, 0.001)),
      back: x => 100.5 - 10 ** -x,
    }),
  };

  // Round numbers of an axis, the roundest first, none closer than `gap` pixels to another.
  function ticks([low, high], scale, pixels, gap, most) {
    const from = Math.max(scale.back(low), 0), to = Math.min(scale.back(high), most);
    const found = [];
    const add = value => {
      const place = (scale.there(value) - low) / (high - low) * pixels;
      if (value < from - 1e-9 || value > to + 1e-9) return;
      const room = found.length < 5 ? gap : 2 * gap; // enough numbers already: fewer odd ones
      if (found.every(other => Math.abs(other.place - place) >= room)) found.push({value, place});
    };
    add(0);
    for (let power = 4; power >= -4; power--) add(10 ** power);
    for (let power = 2; power >= -3; power--) {
      for (const digit of [5, 2, 1]) {
        const step = digit * 10 ** power;
        if ((to - from) / step > 300) return found;
        for (let i = Math.ceil(from / step); i * step <= to; i++) add(i * step);
      }
    }
    return found;
  }

  // Of points in order those that can bear a name: others are close, on a scale of their own range.
  function apart(points, x, y) {
    const span = f => Math.max(...points.map(f)) - Math.min(...points.map(f)) || 1;
    const wide = 0.14 * span(x), high = 0.08 * span(y), found = new Set();
    for (const point of points) {
      const near = other => Math.abs(x(point) - x(other)) < wide
        && Math.abs(y(point) - y(other)) < high;
      if (point.short && ![...found].some(near)) found.add(point);
    }
    return found;
  }

  function start(box) {
    const data = JSON.parse(box.querySelector('script').textContent);
    const section = box.closest('section');
    const panels = box.querySelector('.panels');
    const all = data.tasks.length > 1 ? [['all tasks', -1]] : [];
    const costs = choice('Cost', data.costs.map((cost, i) => [cost.name, i]));
    costs.value = data.start;
    const tasks = choice('Task', [...all, ...data.tasks.map((task, i) => [task.name, i])]);
    // A student that is pruned and not retrained yet is on its way: shown when asked for.
    const on = data.series.some(series => series.stage === 'retrained');
    const off = new Set(data.series.filter(s => on && s.stage === 'pruned').map(s => s.name));
    const touch = matchMedia('(pointer: coarse)').matches;

    // A labelled choice, shown where there is something to choose.
    function choice(name, options) {
      const label = document.createElement('label'), select = document.createElement('select');
      label.append(`${name} `, select);
      for (const [text, value] of options) select.add(new Option(text, value));
      select.addEventListener('change', () => draw(true));
      if (options.length > 1) box.querySelector('.tools').append(label);
      return select;
    }

    function traces(task, cost) {
      const x = costScale(cost).there, y = scales.accuracy().there;
      const known = data.points.filter(p => p.task === task && p.cost[cost.key] !== undefined);
      const best = known.filter(p => p.front[cost.key])
        .sort((a, b) => a.cost[cost.key] - b.cost[cost.key] || a.accuracy - b.accuracy);
      const named = apart(best, p => x(p.cost[cost.key]), p => y(p.accuracy));
      const drawn = [{
        x: best.map(p => x(p.cost[cost.key])), y: best.map(p => y(p.accuracy)),
        mode: 'lines', line: {shape: 'hv', width: 7, color: colour('--rule')},
        hoverinfo: 'skip', name: 'Pareto front',
      }];
      data.series.forEach((series, i) => {
        const points = known.filter(p => p.series === i)
          .sort((a, b) => a.cost[cost.key] - b.cost[cost.key]);
        if (!points.length) return;
        const half = p => p.half ?? 0, top = p => Math.min(p.accuracy + half(p), 100);
        drawn.push({
          x: points.map(p => x(p.cost[cost.key])), y: points.map(p => y(p.accuracy)),
          error_y: {
            type: 'data', symmetric: false, thickness: 1.2, width: 4,
            array: points.map(p => y(top(p)) - y(p.accuracy)),
            arrayminus: points.map(p => y(p.accuracy) - y(p.accuracy - half(p))),
          },
          customdata: points.map(p => [p.accuracy, p.half ?? null, p.cost[cost.key]]),
          hovertext: points.map(p => [
            `<b>${p.label}</b>`, p.said, p.told[cost.key], ...p.facts,
          ].join('<br>')),
          hovertemplate: '%{hovertext}<extra></extra>',
          text: points.map(p => named.has(p) ? p.short : ''),
          textposition: 'top left', textfont: {color: colour('--ink'), size: 11},
          mode: (series.line ? 'lines+' : '') + 'markers+text',
          name: series.name, cliponaxis: false,
          visible: !off.has(series.name),
          marker: {color: series.colour, symbol: series.symbol, size: 9,
            line: {color: colour('--paper'), width: 1}},
          line: {color: series.colour, width: 1.5, dash: series.dash},
        });
      });
      return drawn;
    }

    function costScale(cost) {
      return scales[cost.scale](cost.first);
    }

    function layout(task, cost, drawn, range) {
      const scale = {x: costScale(cost), y: scales.accuracy()};
      const shown = drawn.filter(t => t.visible !== false && t.x.length);
      const lows = shown.flatMap(t => t.y.map((y, i) => y - (t.error_y?.arrayminus[i] ?? 0)));
      const highs = shown.flatMap(t => t.y.map((y, i) => y + (t.error_y?.array[i] ?? 0)));
      // One wide interval must not flatten the rest: it may be cut off.
      const ys = shown.flatMap(t => t.y), least = Math.min(...ys), most = Math.max(...ys);
      const beyond = 0.6 * (most - least) + 0.02;
      const low = Math.max(Math.min(...lows), least - beyond);
      const high = Math.min(Math.max(...highs), most + beyond);
      const room = 0.08 * (high - low) + 0.02;
      const right = cost.scale === 'linear' ? 1.08 * cost.most : scale.x.there(cost.most) + 0.25;
      const wanted = {
        x: range?.x ?? [cost.scale === 'linear' ? 0 : -0.15, right],
        y: range?.y ?? (shown.length ? [low - room, Math.min(high + room, 0.4)] : [-1.5, 0]),
      };
      const {clientWidth: width, clientHeight: height} = task.plot;
      const margin = {l: 56, r: 10, t: 12, b: 48};
      const axis = (name, pixels, gap, most) => {
        const found = ticks(wanted[name], scale[name], pixels, gap, most);
        return {
          range: wanted[name], tickvals: found.map(t => scale[name].there(t.value)),
          ticktext: found.map(t => String(Number(t.value.toPrecision(6)))),
          gridcolor: colour('--rule'), zeroline: false, linecolor: colour('--quiet'),
          showline: true, fixedrange: touch, ticks: 'outside', ticklen: 3,
        };
      };
      return {
        width, height, margin, showlegend: false, dragmode: touch ? false : 'zoom',
        hovermode: 'closest', paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
        font: {family: getComputedStyle(document.body).fontFamily, size: 12,
          color: colour('--ink')},
        hoverlabel: {align: 'left', bgcolor: colour('--card'), bordercolor: colour('--rule'),
          font: {family: getComputedStyle(document.body).fontFamily, color: colour('--ink'),
            size: 12}},
        xaxis: {...axis('x', width - margin.l - margin.r, 40, Infinity),
          title: {text: cost.axis, font: {size: 12}, standoff: 8}},
        yaxis: {...axis('y', height - margin.t - margin.b, 26, 100),
          title: {text: task.axis, font: {size: 12}, standoff: 6}},
        shapes: data.references.filter(r => r.task === task.place && !off.has(r.name)).map(r => ({
          type: 'line', xref: 'paper', x0: 0, x1: 1, layer: 'below',
          y0: scale.y.there(r.accuracy), y1: scale.y.there(r.accuracy),
          line: {color: r.colour, width: 1, dash: 'dash'},
        })),
      };
    }

    const parts = data.tasks.map((task, place) => {
      const panel = document.createElement('figure');
      panel.className = 'panel';
      panel.append(document.createElement('h3'), document.createElement('div'));
      panel.firstChild.textContent = task.name;
      panel.lastChild.className = 'plot';
      return {...task, place, panel, plot: panel.lastChild, range: null};
    });

    function draw(fresh) {
      const cost = data.costs[costs.value], only = Number(tasks.value);
      const wanted = parts.filter(part => only < 0 || part.place === only);
      if (fresh) panels.replaceChildren(...wanted.map(part => part.panel));
      section.querySelector('h2').textContent = cost.title;
      for (const part of wanted) {
        if (fresh) part.range = null;
        if (!part.plot.clientWidth) continue; // on paper there is no room for it
        const drawn = traces(part.place, cost);
        Plotly.react(part.plot, drawn, layout(part, cost, drawn, part.range),
          {displayModeBar: false, doubleClick: false});
        if (part.heard) continue;
        part.heard = true;
        part.plot.on('plotly_relayout', change => {
          const [x0, y0] = [change['xaxis.range[0]'], change['yaxis.range[0]']];
          if (x0 === undefined && y0 === undefined) return;
          const {xaxis, yaxis} = part.plot.layout;
          part.range = {x: [...xaxis.range], y: [...yaxis.range]};
          draw(false); // other round numbers fit now
        });
        part.plot.on('plotly_doubleclick', () => { part.range = null; draw(false); });
      }
    }

    const legend = box.querySelector('.legend');
    for (const series of data.series) {
      const button = document.createElement('button');
      button.type = 'button';
      button.setAttribute('aria-pressed', String(!off.has(series.name)));
      const mark = document.createElement('i');
      mark.style.color = series.colour;
      mark.textContent = `${GLYPHS[series.symbol] ?? '●'} `;
      button.append(mark, series.name);
      button.addEventListener('click', () => {
        off.has(series.name) ? off.delete(series.name) : off.add(series.name);
        button.setAttribute('aria-pressed', String(!off.has(series.name)));
        draw(false);
      });
      legend.append(button);
    }
    box.hidden = false;
    document.documentElement.classList.add('live');
    draw(true);
    let width = panels.clientWidth;
    new ResizeObserver(() => {
      if (panels.clientWidth === width) return;
      width = panels.clientWidth;
      draw(false);
    }).observe(panels);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => draw(false));
  }

  document.querySelectorAll('.chart').forEach(start);
})();
