// Plays the moment of one result at a time, over and over, and moves the line on its strip.

const still = matchMedia("(prefers-reduced-motion: reduce)");
let playing = null; // the player that plays; only one does

const SHORTEST = 1; // second that is played; a shorter moment has some of what is before and behind it

/** The moment of one video. `show(second)` is called while it plays, `show(null)` when it stops. */
export class Player {
  constructor(video, { start, end, duration }, show) {
    this.video = video;
    const more = Math.max(0, SHORTEST - (end - start)) / 2;
    this.end = Math.min(Math.max(end + more, SHORTEST), Math.max(duration, end));
    this.start = Math.max(0, Math.min(start - more, this.end - SHORTEST, start));
    this.show = show;
    this.chosen = false; // by a click or a key, so it goes on when the pointer leaves
    this.tick = this.tick.bind(this);
    video.addEventListener("pause", () => this.show(null));
  }

  /** Plays without sound, while the pointer or the keyboard is there. */
  preview() {
    if (still.matches || playing?.chosen) return;
    this.video.muted = true;
    this.play();
  }

  leave() {
    if (!this.chosen) this.stop();
  }

  /** Plays with sound, or stops. */
  toggle() {
    if (this.chosen && !this.video.paused) {
      this.stop();
      return;
    }
    if (playing && playing !== this) playing.stop();
    this.chosen = true;
    this.video.muted = false;
    this.play();
  }

  seek(second) {
    this.video.currentTime = second;
    this.show(second);
  }

  async play() {
    if (playing && playing !== this) playing.stop();
    playing = this;
    const at = this.video.currentTime;
    if (at < this.start - 0.05 || at >= this.end - 0.05) this.video.currentTime = this.start;
    try {
      await this.video.play();
      requestAnimationFrame(this.tick);
    } catch (error) {
      if (error.name !== "NotAllowedError" || this.video.muted) return; // it was stopped meanwhile, or cannot be played
      this.video.muted = true; // a browser that plays no sound before it is touched
      await this.play();
    }
  }

  stop() {
    this.chosen = false;
    this.video.pause();
    if (playing === this) playing = null;
  }

  tick() {
    if (this.video.paused) return;
    const at = this.video.currentTime;
    if (at >= this.end - 0.02 || this.video.ended) this.video.currentTime = this.start;
    this.show(at);
    requestAnimationFrame(this.tick);
  }
}

/** Stops what plays; false if nothing did. */
export function stopPlaying() {
  if (!playing) return false;
  playing.stop();
  return true;
}

/** Gives a video its address once it is near the part of the page that is seen. */
const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      target.src = target.dataset.address;
      near.unobserve(target);
    }
  },
  { rootMargin: "300px" },
);

export function loadWhenNear(video, address) {
  video.dataset.address = address;
  near.observe(video);
}

/** Lets go of the files of results that leave the page. */
export function release(container) {
  for (const video of container.querySelectorAll("video")) {
    near.unobserve(video);
    video.removeAttribute("src");
    video.load();
  }
}
