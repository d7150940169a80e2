// SPDX-License-Identifier: GPL-2.0

//! The live view on a terminal.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};
use ratatui::{DefaultTerminal, Frame};

use crate::rates::{between, Activity};
use crate::sample::Sample;

/// What is shown.
#[derive(Default)]
struct View {
    activities: Vec<Activity>,
    /// The VM whose exits are shown, by its place.
    selected: TableState,
    /// Exits that did not occur lately are shown, too.
    shows_idle: bool,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    GoOn,
    Quit,
}

/// Shows the counters below `dir` until the user quits.
pub fn show(dir: &Path, process: Option<u32>, interval: Duration) -> Result<()> {
    let first = Sample::read(dir, process)?;
    let mut terminal = ratatui::try_init()?;
    let result = run(&mut terminal, first, interval, || {
        Sample::read(dir, process)
    });
    ratatui::try_restore()?;
    result
}

fn run(
    terminal: &mut DefaultTerminal,
    first: Sample,
    interval: Duration,
    read: impl Fn() -> Result<Sample>,
) -> Result<()> {
    let mut view = View::default();
    view.update(between(&first, &first));
    let mut before = first;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        let end = Instant::now() + interval;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() || !event::poll(rest)? {
                break;
            }
            if let Event::Key(key) = event::read()? {
                if view.press(key) == Request::Quit {
                    return Ok(());
                }
            }
            terminal.draw(|frame| view.draw(frame))?;
        }
        let now = read()?;
        view.update(between(&before, &now));
        before = now;
    }
}

impl View {
    /// Shows new numbers; the selection stays on its VM.
    fn update(&mut self, activities: Vec<Activity>) {
        let selected = self.current().map(|activity| activity.vm.clone());
        self.activities = activities;
        let place = self
            .activities
            .iter()
            .position(|activity| Some(&activity.vm) == selected.as_ref());
        let first = (!self.activities.is_empty()).then_some(0);
        self.selected.select(place.or(first));
    }

    fn current(&self) -> Option<&Activity> {
        self.activities.get(self.selected.selected()?)
    }

    fn press(&mut self, key: KeyEvent) -> Request {
        if key.kind != KeyEventKind::Press {
            return Request::GoOn;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Request::Quit,
            KeyCode::Char('c') if is_control => return Request::Quit,
            KeyCode::Char('i') => self.shows_idle = !self.shows_idle,
            KeyCode::Up | KeyCode::Char('k') => self.selected.select_previous(),
            KeyCode::Down | KeyCode::Char('j') => self.selected.select_next(),
            _ => (),
        }
        Request::GoOn
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let vms = u16::try_from(self.activities.len()).unwrap_or(u16::MAX);
        let [top, middle, bottom] = Layout::vertical([
            Constraint::Length(vms.saturating_add(3).min(10)),
            Constraint::Min(4),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_stateful_widget(vm_table(&self.activities), top, &mut self.selected);
        if let Some(activity) = self.current() {
            let failed = u16::try_from(activity.failed_checks.len()).unwrap_or(u16::MAX);
            let height = if failed == 0 {
                0
            } else {
                failed.saturating_add(2).min(8)
            };
            let [exits, checks] =
                Layout::vertical([Constraint::Min(4), Constraint::Length(height)]).areas(middle);
            frame.render_widget(exit_table(activity, self.shows_idle), exits);
            frame.render_widget(check_list(activity), checks);
        }
        let help = "q quit   up/down choose a VM   i show idle reasons";
        frame.render_widget(Line::from(help), bottom);
    }
}

fn heading(words: &[&'static str]) -> Row<'static> {
    Row::new(words.iter().map(|word| Cell::from(*word)))
        .style(Style::new().add_modifier(Modifier::BOLD))
}

fn vm_table(activities: &[Activity]) -> Table<'static> {
    let rows = activities.iter().map(|activity| {
        let count = |name: &str| activity.entries.get(name).copied().unwrap_or_default();
        Row::new([
            activity.vm.clone(),
            format!("{:.0}", activity.entry_rate),
            format!("{:.0}", activity.rate()),
            count("entered").to_string(),
            count("refused").to_string(),
        ])
    });
    Table::new(rows, [Constraint::Fill(1); 5])
        .header(heading(&[
            "VM",
            "entries/s",
            "exits/s",
            "entries",
            "refused",
        ]))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title("Nested virtualization"))
}

fn exit_table(activity: &Activity, shows_idle: bool) -> Table<'static> {
    let all = activity.rate();
    let rows = activity
        .exits
        .iter()
        .filter(|row| shows_idle || row.rate() > 0.0)
        .map(|row| {
            let share = if all > 0.0 {
                100.0 * row.rate() / all
            } else {
                0.0
            };
            Row::new([
                row.reason.clone(),
                row.total.total().to_string(),
                format!("{share:.1}"),
                format!("{:.0}", row.l0_rate),
                format!("{:.0}", row.l1_rate),
            ])
        });
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ];
    Table::new(rows, widths)
        .header(heading(&["exit of L2", "total", "%", "to L0/s", "to L1/s"]))
        .block(Block::bordered().title(format!("VM {}", activity.vm)))
}

fn check_list(activity: &Activity) -> Paragraph<'static> {
    let lines: Vec<Line<'static>> = activity
        .failed_checks
        .iter()
        .map(|(name, count)| Line::from(format!("{name}: {count}")))
        .collect();
    Paragraph::new(lines).block(Block::bordered().title("failed checks"))
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;
    use ratatui::Terminal;

    use super::*;
    use crate::report::tests::activity;

    fn screen(view: &mut View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_selected_vm_is_shown_and_stays_selected() {
        let mut view = View::default();
        view.update(vec![activity("7-1"), activity("8-2")]);
        assert!(screen(&mut view).contains("VM 7-1"));
        view.press(KeyEvent::from(KeyCode::Down));
        view.update(vec![activity("6-3"), activity("7-1"), activity("8-2")]);
        let text = screen(&mut view);
        assert!(text.contains("VM 8-2") && text.contains("CPUID"), "{text}");
        assert!(text.contains("Control::Asid: 3"), "{text}");
        view.update(Vec::new());
        assert!(!screen(&mut view).contains("8-2"));
    }

    #[test]
    fn idle_reasons_are_hidden_until_they_are_wanted() {
        let mut idle = activity("7-1");
        (idle.exits[0].l0_rate, idle.exits[0].l1_rate) = (0.0, 0.0);
        let mut view = View::default();
        view.update(vec![idle]);
        assert!(!screen(&mut view).contains("CPUID"));
        view.press(KeyEvent::from(KeyCode::Char('i')));
        assert!(screen(&mut view).contains("CPUID"));
    }

    #[test]
    fn q_and_control_c_quit() {
        let mut view = View::default();
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(
            view.press(KeyEvent::from(KeyCode::Char('q'))),
            Request::Quit
        );
        assert_eq!(view.press(control_c), Request::Quit);
        assert_eq!(
            view.press(KeyEvent::from(KeyCode::Char('c'))),
            Request::GoOn
        );
    }
}
