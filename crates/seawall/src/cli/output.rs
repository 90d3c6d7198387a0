//! How things look on a terminal: tables without lines, colours only for people.

use std::io::IsTerminal as _;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};

/// Whether colours are wanted on standard output: a terminal, and NO_COLOR not set.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// An empty table with these column titles.
pub fn table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let bold = colours();
    table.set_header(titles.iter().map(|title| {
        let cell = Cell::new(title);
        if bold { cell.add_attribute(Attribute::Bold) } else { cell }
    }));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table's text without blanks at the ends of lines.
pub fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A state with the colour that its meaning has everywhere.
pub fn state(word: &str) -> Cell {
    let cell = Cell::new(word);
    if !colours() {
        return cell;
    }
    match word {
        "ok" | "ready" | "serving" | "primary" => cell.fg(Color::Green),
        "starting" | "draining" | "stopping" | "switching" | "rolling" | "degraded" | "unready" => {
            cell.fg(Color::Yellow)
        }
        "down" | "back-off" | "stuck" | "stopped" => cell.fg(Color::Red),
        _ => cell,
    }
}

/// How long ago an RFC 3339 moment was, in the largest unit that says enough: `42s`, `7m`, `3h`, `12d`.
pub fn ago(moment: &str) -> String {
    let Ok(then) = moment.parse::<jiff::Timestamp>() else { return moment.to_owned() };
    let seconds = (jiff::Timestamp::now().as_second() - then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
