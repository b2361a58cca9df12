//! The chart: a panel for each measure, a bar for each contender.
//!
//! It has no background, and colours that can be read on a light and on a dark one. Its letters are
//! the viewer's.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::contenders::Contender;
use crate::results::Row;

const OURS: RGBColor = RGBColor(47, 129, 247);
const OTHERS: RGBColor = RGBColor(139, 146, 156);
const MISHAP: RGBColor = RGBColor(219, 74, 64);
const TEXT: RGBColor = RGBColor(118, 124, 133);

const COLUMNS: usize = 2;
const WIDTH: u32 = 840;
const PANEL_HEIGHT: u32 = 142;
/// Where the bars begin, how long the longest is, and how far one is from the next.
const LEFT: i32 = 184;
const LONGEST: f64 = 150.0;
const STEP: i32 = 26;
const BAR: i32 = 14;
const TOP: i32 = 36;

/// The chart as SVG. Rows that have nothing to be drawn get no panel.
pub fn svg(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.unit.is_drawn()).collect();
    let lines = rows.len().div_ceil(COLUMNS);
    let height = PANEL_HEIGHT * u32::try_from(lines).expect("a few rows");
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        let panels = root.split_evenly((lines, COLUMNS));
        for (row, panel) in rows.into_iter().zip(&panels) {
            draw(row, panel).expect("a string can be drawn into");
        }
        root.present().expect("a string can be written to");
    }
    text
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw<'a>(row: &Row, panel: &Panel<'a>) -> Drawn<'a> {
    let write = |text: &str, at: (i32, i32), side: HPos, bold: bool, colour: RGBColor| {
        let mut font = ("sans-serif", 16).into_font();
        if bold {
            font = font.style(FontStyle::Bold);
        }
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(side, VPos::Center));
        panel.draw(&Text::new(text.to_owned(), at, style))
    };
    write(row.what, (8, 16), HPos::Left, true, TEXT)?;
    let spreads = Contender::ALL.map(|who| row.spread(who));
    // A bar with none to be compared to is drawn to the scale of a second.
    let alone = spreads.iter().flatten().count() == 1;
    let longest =
        spreads.iter().flatten().fold(if alone { 1000.0 } else { 0.0 }, |longest: f64, spread| {
            longest.max(spread.upper_quartile)
        });
    let x = |value: f64| LEFT + (value.max(0.0) / longest * LONGEST).round() as i32;
    for ((place, who), spread) in (0..).zip(Contender::ALL).zip(spreads) {
        let middle = TOP + STEP * place + BAR / 2;
        let (top, bottom) = (middle - BAR / 2, middle + BAR / 2);
        let ours = who == Contender::Ours;
        write(who.name(), (LEFT - 8, middle), HPos::Right, ours, TEXT)?;
        let mut end = LEFT;
        if let Some(spread) = spread {
            // However short, it is seen.
            end = x(spread.median).max(LEFT + 1);
            let colour = if ours { OURS } else { OTHERS };
            panel.draw(&Rectangle::new([(LEFT, top), (end, bottom)], colour.filled()))?;
            let (lower, upper) = (x(spread.lower_quartile), x(spread.upper_quartile));
            if upper - lower > 2 {
                panel.draw(&PathElement::new(vec![(lower, middle), (upper, middle)], TEXT))?;
            }
            end = end.max(upper);
            let value = row.unit.show(spread.median);
            write(&value, (end + 6, middle), HPos::Left, ours, TEXT)?;
            // As wide as its letters are at most.
            end += 8 * i32::try_from(value.chars().count()).unwrap_or_default();
        }
        if let Some(mishaps) = row.mishaps(who) {
            write(&mishaps, (end + 6, middle), HPos::Left, false, MISHAP)?;
        } else if spread.is_none() {
            write("–", (end + 6, middle), HPos::Left, false, TEXT)?;
        }
    }
    Ok(())
}
