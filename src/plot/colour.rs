//! Blue for less, white for nothing, red for more: a diverging scale that colour-blind readers can tell apart.

/// Stops from -1 to 1 in equal steps.
const STOPS: [[u8; 3]; 7] = [
    [33, 102, 172],
    [103, 169, 207],
    [209, 229, 240],
    [247, 247, 247],
    [253, 219, 199],
    [239, 138, 98],
    [178, 24, 43],
];

/// The colour of a value between -1 and 1; values outside are clipped.
pub fn diverging(value: f64) -> [u8; 3] {
    let place = (value.clamp(-1.0, 1.0) + 1.0) / 2.0 * (STOPS.len() - 1) as f64;
    let below = (place.floor() as usize).min(STOPS.len() - 2);
    let part = place - below as f64;
    std::array::from_fn(|i| {
        let (low, high) = (STOPS[below][i] as f64, STOPS[below + 1][i] as f64);
        (low + part * (high - low)).round() as u8
    })
}

/// The nearest of the 256 colours of a terminal: its 6x6x6 cube (16 to 231) or its greys (232 to 255).
pub fn nearest_of_256(rgb: [u8; 3]) -> u8 {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let distance = |a: [u8; 3]| -> u32 {
        a.iter()
            .zip(rgb)
            .map(|(&x, y)| u32::from(x.abs_diff(y)).pow(2))
            .sum()
    };
    let level = |c: u8| {
        (0..6)
            .min_by_key(|&i| LEVELS[i].abs_diff(c))
            .expect("six levels")
    };
    let [r, g, b] = rgb.map(level);
    let cube = [LEVELS[r], LEVELS[g], LEVELS[b]];
    let mean = rgb.iter().map(|&c| u32::from(c)).sum::<u32>() / 3;
    let grey = (mean.saturating_sub(3) / 10).min(23) as u8;
    match distance([8 + 10 * grey; 3]) < distance(cube) {
        true => 232 + grey,
        false => (16 + 36 * r + 6 * g + b) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_blue_white_red_and_clips() {
        assert_eq!(diverging(-1.0), [33, 102, 172]);
        assert_eq!(diverging(0.0), [247, 247, 247]);
        assert_eq!(diverging(3.0), [178, 24, 43]);
        // Half way between the last two stops.
        assert_eq!(diverging(5.0 / 6.0), [209, 81, 71]);
    }

    #[test]
    fn the_cube_and_the_greys_are_found() {
        assert_eq!(nearest_of_256([255, 0, 0]), 196);
        assert_eq!(nearest_of_256([0, 0, 0]), 16);
        assert_eq!(nearest_of_256([250, 250, 250]), 231);
        assert_eq!(nearest_of_256([238, 238, 238]), 255);
    }
}
