// Tables sort by any column; details open for printing. No library, no network.
"use strict";

function sortTable(table, column, header) {
  const body = table.tBodies[0];
  const numeric = header.dataset.type === "number";
  const current = header.getAttribute("aria-sort");
  const direction =
    current === null ? (numeric ? -1 : 1) : current === "descending" ? 1 : -1;
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    // What is missing stays at the bottom in both directions.
    if (x === "" || y === "") return (x === "") - (y === "");
    if (numeric) return direction * (Number(x) - Number(y));
    return direction * x.localeCompare(y, undefined, { numeric: true });
  };
  body.append(...[...body.rows].sort(compare));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = header.querySelector("button");
    if (button) button.addEventListener("click", () => sortTable(table, column, header));
  });
}

let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
