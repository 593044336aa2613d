import { element } from "./elements";

/** The photo of a view over a part of the image, and the handle that moves its edge. */
export class Wipe {
  private readonly box = element("truth", HTMLDivElement);
  private readonly photo = element("photo", HTMLImageElement);
  private readonly label = element("photo-label", HTMLSpanElement);
  private readonly slider = element("wipe", HTMLInputElement);
  private readonly line = element("line", HTMLDivElement);
  private wanted: string | undefined; // asked for last
  private failed: string | undefined;

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
      this.failed = this.wanted;
      this.photo.removeAttribute("src");
    });
    this.move();
  }

  /** Show a photo in a rectangle of the page, or none. */
  place(photo: string | undefined, frame: { left: number; top: number; width: number; height: number }): void {
    this.box.hidden = photo === undefined;
    // A photo that failed is requested again only when it is selected again, not with every image in between.
    if (photo !== this.failed) this.failed = undefined;
    if (photo === undefined) return;
    if (photo !== this.failed && !this.photo.src.endsWith(`/${photo}`)) {
      // Until the new photo is loaded, the element would keep showing the photo of another view.
      this.photo.hidden = true;
      this.label.textContent = "Loading the photo";
      this.photo.src = photo;
      this.wanted = photo;
    }
    for (const [side, value] of Object.entries(frame)) this.box.style.setProperty(side, `${value}px`);
  }

  private move(): void {
    const part = this.slider.valueAsNumber;
    this.photo.style.clipPath = `inset(0 ${100 - part}% 0 0)`;
    this.line.style.left = `${part}%`;
  }
}
