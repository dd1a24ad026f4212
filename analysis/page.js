// The results table: sort by a click on a title, find lines by words, hide all but last stages;
// and a link that leads into something folded opens it. Everything is readable without.
'use strict';
(() => {
  const table = document.getElementById('results');
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];

  heads.forEach((head, column) => {
    head.querySelector('button').addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') === 'descending';
      const key = row => {
        const cell = row.cells[column], number = cell.dataset.key;
        return number === undefined ? cell.textContent : Number(number);
      };
      const rank = value => typeof value === 'number' ? 0 : 1;
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (rank(x) !== rank(y)) return rank(x) - rank(y);
        const order = rank(x) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
        return up ? order : -order;
      });
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...rows);
    });
  });

  const tools = document.getElementById('tools');
  if (tools) {
    const words = tools.querySelector('[type=search]');
    const last = tools.querySelector('[type=checkbox]');
    const told = tools.querySelector('output');
    const show = () => {
      const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = (last && last.checked && 'earlier' in row.dataset)
          || !sought.every(word => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      told.textContent = `${shown} of ${body.rows.length} lines`;
    };
    tools.addEventListener('input', show);
    tools.hidden = false;
    show();
  }

  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let part = target; part; part = part.parentElement) {
      if (part.tagName === 'DETAILS') part.open = true;
    }
    target.scrollIntoView();
  };
  addEventListener('hashchange', reveal);
  // A second click on the same link changes no address, yet the reader wants to go there again.
  document.addEventListener('click', event => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) reveal();
  });
  reveal();
})();
