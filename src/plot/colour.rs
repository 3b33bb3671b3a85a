//! Colours of values. Red is more and blue is less, a pair that colour-blind readers can tell apart; a drawn picture may have others.
//!
//! A file has a white background, and nothing is white there. A terminal's background is not known: nothing is no block at
//! all, and the blocks have one luminance, half way between black and white, so that they stand out equally on a dark and on
//! a light background and blue as much as red. How strong an effect is shows in how far the block is from grey.

use crate::error::{Error, Result};

/// The colours of a drawn picture, on white; all can be told apart by colour-blind readers. The diverging ones are ColorBrewer's
/// RdBu and PuOr (Harrower and Brewer 2003), the sequential one is matplotlib's viridis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Palette {
    /// Blue below 0, red above.
    #[default]
    RedBlue,
    /// Purple below 0, orange above.
    OrangePurple,
    /// From dark at 0 to yellow, for values of one sign.
    Viridis,
}

/// Stops from -1 to 1 in equal steps.
const RED_BLUE: [[u8; 3]; 7] = [
    [33, 102, 172],
    [103, 169, 207],
    [209, 229, 240],
    [247, 247, 247],
    [253, 219, 199],
    [239, 138, 98],
    [178, 24, 43],
];
const ORANGE_PURPLE: [[u8; 3]; 7] = [
    [84, 39, 136],
    [153, 142, 195],
    [216, 218, 235],
    [247, 247, 247],
    [254, 224, 182],
    [241, 163, 64],
    [179, 88, 6],
];
/// Stops from 0 to 1.
const VIRIDIS: [[u8; 3]; 7] = [
    [68, 1, 84],
    [68, 58, 131],
    [49, 104, 142],
    [33, 145, 140],
    [53, 183, 121],
    [144, 215, 67],
    [253, 231, 37],
];

impl Palette {
    /// The colour of a value between -1 and 1; values outside are clipped.
    pub(super) fn at(self, value: f64) -> [u8; 3] {
        let diverging = (value.clamp(-1.0, 1.0) + 1.0) / 2.0;
        match self {
            Palette::RedBlue => between(&RED_BLUE, diverging),
            Palette::OrangePurple => between(&ORANGE_PURPLE, diverging),
            Palette::Viridis => between(&VIRIDIS, value.abs()),
        }
    }

    /// Of a line, a bar or a mark, which are above or below 0 and no more.
    pub(super) fn of_sign(self, value: f64) -> [u8; 3] {
        match self {
            // Its ends are too bright or all too like black.
            Palette::Viridis => VIRIDIS[2],
            _ => self.at(0.85 * value.signum()),
        }
    }

    /// Whether values above and below 0 look the same.
    pub(super) fn is_sequential(self) -> bool {
        self == Palette::Viridis
    }

    /// Refuses values on both sides of 0 where their signs would look the same.
    /// # Errors
    /// [`Error::Invalid`] naming palettes that tell them apart.
    pub(super) fn check(self, values: impl IntoIterator<Item = f64>) -> Result<()> {
        let (mut above, mut below) = (false, false);
        for value in values {
            above |= value > 0.0;
            below |= value < 0.0;
        }
        match self.is_sequential() && above && below {
            true => Err(Error::invalid(
                "`viridis` is for values of one sign, and these lie on both sides of 0; take `red-blue` or `orange-purple`",
            )),
            false => Ok(()),
        }
    }

    /// What its colours say of lines.
    pub(super) fn signs(self) -> &'static str {
        match self {
            Palette::RedBlue => "red is above 0, blue below",
            Palette::OrangePurple => "orange is above 0, purple below",
            Palette::Viridis => "all of one sign",
        }
    }
}

/// Stops of a terminal's blocks from [`LEAST_BLOCK`] to 1 in equal steps: relative luminance 0.18, mixed in linear light.
const REDS: [[u8; 3]; 4] = [[141, 110, 110], [178, 93, 92], [202, 75, 73], [227, 41, 36]];
const BLUES: [[u8; 3]; 4] = [
    [110, 117, 146],
    [91, 115, 187],
    [71, 113, 214],
    [30, 111, 242],
];

/// The nearest that 256 colours come to the stops.
const REDS_OF_256: [u8; 4] = [95, 131, 167, 160];
const BLUES_OF_256: [u8; 4] = [60, 61, 62, 27];

/// Weaker values are a coloured number without a block.
const LEAST_BLOCK: f64 = 0.1;

const BLACK: [u8; 3] = [0, 0, 0];
const WHITE: [u8; 3] = [255, 255, 255];

/// How a cell of a terminal looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    /// The terminal's own colours.
    None,
    Number([u8; 3]),
    Block {
        fill: [u8; 3],
        number: [u8; 3],
    },
}

/// The look of a value between -1 and 1 on a terminal with 24-bit colours; values outside are clipped.
pub(super) fn paint(value: f64) -> Paint {
    let strength = value.abs().min(1.0);
    let stops = if value < 0.0 { &BLUES } else { &REDS };
    if !value.is_finite() || value == 0.0 {
        Paint::None
    } else if strength < LEAST_BLOCK {
        Paint::Number(stops[2])
    } else {
        let fill = between(stops, (strength - LEAST_BLOCK) / (1.0 - LEAST_BLOCK));
        Paint::Block {
            fill,
            number: readable_on(fill),
        }
    }
}

/// The escape sequence that starts this look with 24-bit colours; the reset after it is `\x1b[0m`.
pub(super) fn start_24_bit(paint: Paint) -> Option<String> {
    match paint {
        Paint::None => None,
        Paint::Number([r, g, b]) => Some(format!("\x1b[38;2;{r};{g};{b}m")),
        Paint::Block {
            fill: [r, g, b],
            number: [nr, ng, nb],
        } => Some(format!("\x1b[48;2;{r};{g};{b};38;2;{nr};{ng};{nb}m")),
    }
}

/// The same for a terminal with 256 colours.
pub(super) fn start_256(value: f64) -> Option<String> {
    let stops = if value < 0.0 {
        BLUES_OF_256
    } else {
        REDS_OF_256
    };
    match paint(value) {
        Paint::None => None,
        Paint::Number(_) => Some(format!("\x1b[38;5;{}m", stops[2])),
        Paint::Block { .. } => {
            let place = (value.abs().min(1.0) - LEAST_BLOCK) / (1.0 - LEAST_BLOCK) * 3.0;
            let fill = stops[place.round() as usize];
            let number = if readable_on(rgb_of_256(fill)) == BLACK {
                16
            } else {
                231
            };
            Some(format!("\x1b[48;5;{fill};38;5;{number}m"))
        }
    }
}

/// The colour at a place from 0 to 1 among stops in equal steps.
fn between<const N: usize>(stops: &[[u8; 3]; N], place: f64) -> [u8; 3] {
    let place = place.clamp(0.0, 1.0) * (N - 1) as f64;
    let below = (place.floor() as usize).min(N - 2);
    let part = place - below as f64;
    std::array::from_fn(|i| {
        let (low, high) = (stops[below][i] as f64, stops[below + 1][i] as f64);
        (low + part * (high - low)).round() as u8
    })
}

/// White on what is dark enough for it, else black. The blocks are made so that either could be read on them: what decides must
/// not lie among their luminances, or numbers would change their colour from block to block.
fn readable_on(fill: [u8; 3]) -> [u8; 3] {
    const LEAST_CONTRAST: f64 = 4.0;
    if 1.05 / (luminance(fill) + 0.05) >= LEAST_CONTRAST {
        WHITE
    } else {
        BLACK
    }
}

/// Relative luminance of sRGB, from 0 to 1 (WCAG 2).
fn luminance(rgb: [u8; 3]) -> f64 {
    let linear = rgb.map(|c| match f64::from(c) / 255.0 {
        dark if dark <= 0.04045 => dark / 12.92,
        bright => ((bright + 0.055) / 1.055).powf(2.4),
    });
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

/// A colour of the 6x6x6 cube, 16 to 231.
fn rgb_of_256(index: u8) -> [u8; 3] {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let place = usize::from(index.saturating_sub(16)).min(215);
    [place / 36, place / 6 % 6, place % 6].map(|level| LEVELS[level])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_white_the_scale_is_blue_white_red_and_clips() {
        let at = |value| Palette::RedBlue.at(value);
        assert_eq!(at(-1.0), [33, 102, 172]);
        assert_eq!(at(0.0), [247, 247, 247]);
        assert_eq!(at(3.0), [178, 24, 43]);
        // Half way between the last two stops.
        assert_eq!(at(5.0 / 6.0), [209, 81, 71]);
    }

    #[test]
    fn stronger_values_stand_out_more_in_every_palette() {
        for palette in [Palette::RedBlue, Palette::OrangePurple] {
            for sign in [-1.0, 1.0] {
                let light = |step: i32| luminance(palette.at(sign * f64::from(step) / 20.0));
                assert!(
                    (0..20).all(|step| light(step + 1) < light(step)),
                    "{palette:?}"
                );
            }
        }
        let light = |step: i32| luminance(Palette::Viridis.at(f64::from(step) / 20.0));
        assert!((0..20).all(|step| light(step + 1) > light(step)));
        assert_eq!(Palette::Viridis.at(-0.5), Palette::Viridis.at(0.5));
    }

    #[test]
    fn blocks_are_as_visible_in_blue_as_in_red_on_black_and_on_white() {
        let contrast = |a: f64, b: f64| (a.max(b) + 0.05) / (a.min(b) + 0.05);
        for percent in 10..=100 {
            for sign in [-1.0, 1.0] {
                let Paint::Block { fill, number } = paint(sign * percent as f64 / 100.0) else {
                    panic!("{percent} has no block");
                };
                let y = luminance(fill);
                assert!(
                    (y - 0.18).abs() < 0.02,
                    "{percent}: {fill:?} has luminance {y}"
                );
                assert!(contrast(y, 0.0) > 4.0 && contrast(y, 1.0) > 4.0, "{fill:?}");
                assert!(contrast(y, luminance(number)) > 4.2, "{fill:?} {number:?}");
            }
        }
    }

    #[test]
    fn nothing_has_no_colour_and_little_has_no_block() {
        for nothing in [0.0, f64::NAN] {
            assert_eq!(start_24_bit(paint(nothing)), None);
            assert_eq!(start_256(nothing), None);
        }
        assert_eq!(
            start_24_bit(paint(-0.05)).as_deref(),
            Some("\x1b[38;2;71;113;214m")
        );
        assert_eq!(start_256(0.05).as_deref(), Some("\x1b[38;5;167m"));
        assert_eq!(
            start_24_bit(paint(1.0)).as_deref(),
            Some("\x1b[48;2;227;41;36;38;2;255;255;255m")
        );
        assert_eq!(start_256(-7.0).as_deref(), Some("\x1b[48;5;27;38;5;231m"));
    }
}
