//! Output for people: colour where there is a terminal, and tables.

use std::io::IsTerminal as _;

/// A colour or weight of terminal text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// What went well.
    Good,
    /// What did not.
    Bad,
    /// Headings.
    Strong,
    /// What matters less.
    Faint,
}

/// Writes `text` in `style` if standard output is a terminal and `NO_COLOR` is not set.
pub fn paint(style: Style, text: &str) -> String {
    let plain = !std::io::stdout().is_terminal()
        || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if plain {
        return text.to_owned();
    }
    let code = match style {
        Style::Good => "32",
        Style::Bad => "31;1",
        Style::Strong => "1",
        Style::Faint => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Lays rows out in columns, two blanks between them, each column as wide as its widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "bb".to_owned()],
            vec!["ccc".to_owned(), "d".to_owned()],
        ];
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
    }
}
