import { element } from "./elements";

/** The photo of a view over a part of the picture, and the handle that moves its edge. */
export class Wipe {
  private readonly box = element("truth", HTMLDivElement);
  private readonly photo = element("photo", HTMLImageElement);
  private readonly label = element("photo-label", HTMLSpanElement);
  private readonly slider = element("wipe", HTMLInputElement);
  private readonly line = element("line", HTMLDivElement);

  constructor() {
    this.slider.addEventListener("input", () => {
      this.move();
    });
    this.photo.addEventListener("load", () => {
      this.photo.hidden = false;
      this.label.textContent = "Photo";
    });
    this.photo.addEventListener("error", () => {
      this.label.textContent = "The photo cannot be loaded";
      this.photo.removeAttribute("src"); // so that it is asked for again when it is wanted again
    });
    this.move();
  }

  /** Show a photo in a rectangle of the page, or none. */
  place(photo: string | undefined, frame: { left: number; top: number; width: number; height: number }): void {
    this.box.hidden = photo === undefined;
    if (photo === undefined) return;
    if (!this.photo.src.endsWith(`/${photo}`)) {
      // Until the new photo is there, the element would go on showing the one of another view.
      this.photo.hidden = true;
      this.label.textContent = "Loading the photo";
      this.photo.src = photo;
    }
    for (const [side, value] of Object.entries(frame)) this.box.style.setProperty(side, `${value}px`);
  }

  private move(): void {
    const part = this.slider.valueAsNumber;
    this.photo.style.clipPath = `inset(0 ${100 - part}% 0 0)`;
    this.line.style.left = `${part}%`;
  }
}
