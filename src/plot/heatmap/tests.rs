use super::cells::{shade, width_of_coloured};
use super::*;
use crate::plot::{SvgOptions, svg, test_scores};
use crate::text::{cut, width};

fn drawn(tokens: &[&str], layers: u32, options: &HeatmapOptions) -> Vec<String> {
    let text = heatmap(&test_scores(tokens, layers), options).unwrap();
    text.lines().map(String::from).collect()
}

/// Every line that [`heatmap`] draws without colours of two layers, `width` columns wide.
fn lines(tokens: &[&str], width: usize) -> Vec<String> {
    let options = HeatmapOptions {
        width,
        ..HeatmapOptions::default()
    };
    drawn(tokens, 2, &options)
}

#[test]
fn positions_go_down_with_their_tokens_and_cells_are_hundredths_of_the_largest() {
    // Two layers by two positions with scores -4, -3 and -2, -1: the largest magnitude is 4.
    assert_eq!(
        lines(&["When", " Mary"], 80),
        [
            "change of logit_diff (logits)",
            "",
            "              hook_resid_pre",
            "position layer    0    1",
            "0 When         -100  -50",
            "1 Mary          -75  -25",
            "",
            "100 = 4.00 logits (logit_diff), the largest magnitude",
        ]
    );
}

#[test]
fn nothing_is_wider_than_the_terminal_and_every_column_is_drawn() {
    let tokens = [
        "<|begin_of_text|>",
        " internationalisation",
        "日本語日本語日本語日本語",
        "x",
    ];
    for width_of_terminal in [24, 40, 80, 140] {
        for color in [Color::None, Color::Ansi256, Color::Truecolor] {
            let options = HeatmapOptions {
                color,
                width: width_of_terminal,
                ..HeatmapOptions::default()
            };
            let drawn = drawn(&tokens, 30, &options);
            for line in &drawn {
                assert!(width_of_coloured(line) <= width_of_terminal, "{line:?}");
            }
            let heads = drawn.iter().filter(|line| line.starts_with("position"));
            let names: Vec<&str> = heads
                .flat_map(|line| line.split_whitespace().skip(2))
                .collect();
            let layers: Vec<String> = (0..30).map(|layer| layer.to_string()).collect();
            assert_eq!(names, layers, "at {width_of_terminal}: {drawn:#?}");
        }
    }
}

#[test]
fn wide_combining_emoji_and_right_to_left_tokens_keep_the_columns_aligned() {
    let tokens = [
        "日本",
        "e\u{301}te\u{301}",
        "👍",
        "👩‍🚀",
        "שלום",
        "\u{202e}x",
        "\t",
        "नमस्ते",
        "a",
    ];
    let drawn = lines(&tokens, 80);
    let rows = &drawn[4..4 + tokens.len()];
    let right = width(&rows[0]);
    for (row, token) in rows.iter().zip(tokens) {
        assert_eq!(width(row), right, "{token:?}: {row:?}");
    }
    assert!(
        rows[4].contains("\u{200e}שלום\u{200e}"),
        "numbers after Hebrew stay where they are: {:?}",
        rows[4]
    );
}

#[test]
fn hostile_tokens_reach_neither_the_terminal_nor_the_markup() {
    let tokens = [
        "\x1b]0;owned\x07",
        "\r\n\x08",
        "</text><script>alert(1)</script>",
        "日本\u{202e}",
        "' onload='x",
    ];
    let drawn = lines(&tokens, 120).join("\n");
    assert!(
        !drawn.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'),
        "{drawn:?}"
    );
    let picture = svg(&test_scores(&tokens, 2), &SvgOptions::default()).unwrap();
    assert!(
        !picture.contains("<script") && !picture.contains("' onload"),
        "{picture}"
    );
    assert!(
        !picture.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'),
        "{picture:?}"
    );
}

#[test]
fn a_coloured_cell_keeps_its_number_and_is_reset() {
    let options = HeatmapOptions {
        color: Color::Truecolor,
        width: 80,
        ..HeatmapOptions::default()
    };
    let coloured = drawn(&["a", "b"], 2, &options);
    assert_eq!(
        coloured[4],
        "0 a           \x1b[48;2;30;111;242;38;2;255;255;255m-100\x1b[0m\x1b[48;2;84;114;196;38;2;255;255;255m -50\x1b[0m"
    );
    for line in &coloured {
        let starts = line.matches("\x1b[").count() - line.matches("\x1b[0m").count();
        assert_eq!(starts, line.matches("\x1b[0m").count(), "{line:?}");
    }
}

#[test]
fn zero_is_the_terminals_own_background() {
    let scale = Scale {
        hundred: 1.0,
        reach: 1.0,
    };
    for color in [Color::None, Color::Ansi256, Color::Truecolor] {
        assert_eq!(shade(Some(0.0), scale, 4, color), "   ·");
        assert_eq!(shade(Some(0.004), scale, 4, color), "   ·");
        assert_eq!(shade(Some(f64::NAN), scale, 4, color), "   ?");
        assert_eq!(shade(None, scale, 4, color), "    ");
    }
}

#[test]
fn a_long_picture_draws_rows_of_nothing_as_one() {
    // 50 positions of one layer, of which only the last but one has an effect.
    let tokens: Vec<String> = (0..50).map(|i| format!(" w{i}")).collect();
    let mut panel = panels(&test_scores(
        &tokens.iter().map(String::as_str).collect::<Vec<_>>(),
        1,
    ))
    .remove(0);
    panel.values.iter_mut().for_each(|row| row[0] = Some(0.0));
    panel.values[48][0] = Some(-2.0);
    let options = HeatmapOptions {
        width: 40,
        ..HeatmapOptions::default()
    };
    let text = grids(&[panel.clone()], &Provenance::default(), &options);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[4], "0-47              ·   w0 w1 w2 w3 w4 w5…",
        "{text}"
    );
    assert_eq!(lines[5], "48 w48         -100");
    assert_eq!(lines[6], "49 w49            ·", "one row is not worth it");
    panel.rows.truncate(30);
    panel.values.truncate(30);
    let short = grids(&[panel], &Provenance::default(), &options);
    assert_eq!(
        short.lines().filter(|line| line.contains(" w")).count(),
        30,
        "{short}"
    );
}

#[test]
fn a_long_word_is_cut_where_it_no_longer_fits() {
    assert_eq!(cut("Mary", 4), "Mary");
    assert_eq!(cut("Mary", 3), "Ma…");
    assert_eq!(cut("日本語", 4), "日…");
    assert_eq!(cut("a", 0), "");
    assert_eq!(wrapped("one two three", 7), "one two\nthree\n");
}
