//! What the demo prints. Colour only on a terminal.

use std::io::IsTerminal as _;

/// Prints steps, lines and bars.
pub(super) struct Show {
    colour: bool,
}

impl Show {
    pub(super) fn new() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn title(&self, text: &str) {
        println!("{}", self.paint("1;36", text));
    }

    pub(super) fn step(&self, text: &str) {
        println!("\n{} {}", self.paint("1;36", "▶"), self.paint("1", text));
    }

    pub(super) fn line(&self, text: &str) {
        println!("  {text}");
    }

    pub(super) fn code(&self, text: &str) {
        for line in text.lines() {
            println!("  {} {}", self.paint("2", "│"), self.paint("2", line));
        }
    }

    pub(super) fn bar(&self, label: &str, count: u64, total: u64) {
        let share = count as f64 / (total as f64).max(1.0);
        let filled = (share * 40.0).round() as usize;
        let bar = format!("{}{}", "█".repeat(filled), "░".repeat(40_usize.saturating_sub(filled)));
        println!("  {label:<16} {} {:5.1} %  {count}", self.paint("32", &bar), share * 100.0);
    }

    pub(super) fn done(&self, text: &str) {
        println!("\n{} {text}", self.paint("1;32", "✔"));
    }
}
