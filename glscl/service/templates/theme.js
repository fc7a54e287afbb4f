// Light and dark: as the system has it, or as the button says. The style sheet has one block for dark, behind a media
// query; to choose is to rewrite that query, so that no colour is written twice.
"use strict";
(() => {
  const KEY = "glscl-colours";
  const CHOICES = { auto: "Colours: as the system has them", light: "Colours: light", dark: "Colours: dark" };
  const DARK = "(prefers-color-scheme: dark)";
  const rules = [];

  for (const sheet of document.styleSheets) {
    for (const rule of sheet.cssRules) {
      if (rule.media && rule.media.mediaText.includes(DARK)) rules.push([rule, rule.media.mediaText]);
    }
  }

  function stored() {
    try {
      const choice = localStorage.getItem(KEY);
      return choice in CHOICES ? choice : "auto";
    } catch {
      return "auto"; // a browser that keeps nothing
    }
  }

  function apply(choice) {
    for (const [rule, query] of rules) {
      rule.media.mediaText = choice === "auto" ? query : choice === "dark" ? "screen" : "not all";
    }
    document.documentElement.style.colorScheme = choice === "auto" ? "light dark" : choice;
    document.documentElement.dataset.colours = choice;
  }

  let choice = stored();
  apply(choice);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      button.setAttribute("aria-label", CHOICES[choice]);
      button.title = CHOICES[choice];
    };
    show();
    button.addEventListener("click", () => {
      const names = Object.keys(CHOICES);
      choice = names[(names.indexOf(choice) + 1) % names.length];
      try {
        localStorage.setItem(KEY, choice);
      } catch {
        // it holds for this page
      }
      apply(choice);
      show();
    });
  });
})();
