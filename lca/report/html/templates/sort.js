// Makes a table sortable by its headers, and gives it a field to filter rows.
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  const text = (row, column) => row.cells[column].textContent.trim();

  headers.forEach((header, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = header.textContent;
    header.replaceChildren(button);
    const texts = rows.map((row) => text(row, column));
    const isNumber = (x) => x !== '' && Number.isFinite(Number(x));
    // A column of numbers may have gaps, which always come last.
    const numeric = header.classList.contains('number') ||
      (texts.some(isNumber) && texts.every((x) => x === '' || isNumber(x)));
    button.addEventListener('click', () => {
      const up = header.getAttribute('aria-sort') !== 'ascending';
      headers.forEach((other) => other.removeAttribute('aria-sort'));
      header.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const sign = up ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [text(a, column), text(b, column)];
        if (!numeric) {
          return sign * x.localeCompare(y, 'en', { numeric: true });
        }
        if (isNumber(x) !== isNumber(y)) return isNumber(x) ? -1 : 1;
        return isNumber(x) ? sign * (Number(x) - Number(y)) : 0;
      });
      body.append(...rows);
    });
  });

  const tools = document.createElement('div');
  tools.className = 'tools';
  const label = document.createElement('label');
  label.textContent = 'Filter: ';
  const field = document.createElement('input');
  field.type = 'search';
  field.placeholder = 'words that a row contains';
  label.append(field);
  const count = document.createElement('span');
  count.setAttribute('aria-live', 'polite');
  tools.append(label, count);
  table.parentElement.before(tools);
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} runs`;
  };
  field.addEventListener('input', filter);
  filter();
}
