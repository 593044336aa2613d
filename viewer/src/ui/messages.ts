import { ViewerError } from "../errors";
import { element } from "./elements";

/** Show what is wrong and what to do. `fatal` if nothing can be drawn at all. */
export function showError(error: unknown, fatal: boolean): void {
  const known = error instanceof ViewerError;
  const title = known ? error.title : "Something went wrong on this page";
  const advice = known
    ? error.advice
    : `Reload the page. If it happens again, report it with this text: ${error instanceof Error ? error.message : String(error)}`;
  const message = element("message", HTMLDivElement);
  element("message-title", HTMLHeadingElement).textContent = title;
  element("message-advice", HTMLParagraphElement).textContent = advice;
  element("dismiss", HTMLButtonElement).hidden = fatal;
  hideProgress();
  message.hidden = false;
  message.classList.toggle("fatal", fatal);
  if (!known) console.error(error);
}

/** Hide a fatal message, since something could be drawn after all. */
export function hideFatalError(): void {
  const message = element("message", HTMLDivElement);
  if (message.classList.contains("fatal")) message.hidden = true;
}

/** Connect the close button of messages. */
export function wireMessages(): void {
  element("dismiss", HTMLButtonElement).addEventListener("click", () => {
    element("message", HTMLDivElement).hidden = true;
  });
}

/** Show what the user is waiting for and, if known, the fraction that is done, from 0 to 1. */
export function showProgress(text: string, part?: number): void {
  const bar = element("progress", HTMLProgressElement);
  if (part === undefined) bar.removeAttribute("value");
  else bar.value = part;
  element("loading-text", HTMLLabelElement).textContent = text;
  element("loading", HTMLDivElement).hidden = false;
}

export function hideProgress(): void {
  element("loading", HTMLDivElement).hidden = true;
}
