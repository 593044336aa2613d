/** The element of index.html with an id, checked to be of the expected kind. */
export function element<T extends HTMLElement>(id: string, kind: new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html has no ${kind.name} #${id}`);
  return found;
}

/** Call back with the value of the radio button chosen in a group. */
export function onChoice(container: HTMLElement, changed: (value: string) => void): void {
  container.addEventListener("change", (event) => {
    if (event.target instanceof HTMLInputElement) changed(event.target.value);
  });
}

/** Choose a radio button in a group without firing an event. */
export function choose(container: HTMLElement, value: string): void {
  for (const input of container.querySelectorAll("input")) input.checked = input.value === value;
}

/** Wait until changes are visible, but at most a second, since a page in the background is not painted at all. */
export function painted(): Promise<void> {
  return new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(resolve)); // the browser paints between the two
    setTimeout(resolve, 1000);
  });
}
