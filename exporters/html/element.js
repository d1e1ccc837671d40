// <gaussian-avatar src="avatar.bin" controls autoplay>: a picture that lives. Its `avatar` is for scripts.

import { Avatar } from "./avatar.js";
import { fromBase64 } from "./data.js";
import { controls, dress } from "./panel.js";
import { STYLE } from "./style.js";

export class GaussianAvatar extends HTMLElement {
  constructor() {
    super();
    this.attachShadow({ mode: "open" }).innerHTML = `<style>${STYLE}</style>
      <main><div class="stage"><slot name="poster"></slot><canvas tabindex="0"></canvas>
      <p class="message" role="status"></p></div></main>`;
    const [canvas, message] = ["canvas", ".message"].map((name) => this.shadowRoot.querySelector(name));
    canvas.setAttribute("aria-label", "A head, drawn in three dimensions. Drag turns it, the wheel comes closer.");
    this.avatar = new Avatar(canvas);
    this.avatar.addEventListener("ready", () => this.show());
    this.avatar.addEventListener("error", ({ detail }) => {
      message.textContent = detail.message;
      this.dispatchEvent(new CustomEvent("error", { detail }));
    });
  }

  connectedCallback() {
    if (this.begun) return;
    this.begun = true;
    const inside = this.getAttribute("data");
    if (inside) this.avatar.open(fromBase64(document.getElementById(inside).textContent.trim()));
    else if (this.hasAttribute("src")) this.load(this.getAttribute("src"));
  }

  async load(address) {
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
      await this.avatar.open(new Uint8Array(await answer.arrayBuffer()));
    } catch (error) {
      this.avatar.fail(error);
    }
  }

  show() {
    dress(this, this.avatar.header.background);
    if (this.hasAttribute("controls")) {
      const { panel, bar } = controls(this.avatar, this);
      this.shadowRoot.querySelector(".stage").append(bar);
      this.shadowRoot.querySelector("main").append(panel);
      this.toggleAttribute("open", this.clientWidth > 720);
    }
    this.setAttribute("drawn", "");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (this.hasAttribute("autoplay") && !still) this.avatar.play();
    this.dispatchEvent(new CustomEvent("ready", { detail: this.avatar }));
  }
}

customElements.define("gaussian-avatar", GaussianAvatar);
