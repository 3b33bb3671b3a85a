//! A drawn SVG as PNG or PDF. One font is part of the library (DejaVu Sans; its licence lies beside it), and none of the machine's is
//! looked for, so a figure is the same everywhere.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

use crate::error::{Error, Result};

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(include_bytes!("font/DejaVuSans.ttf").to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    Arc::new(fonts)
});

/// Pixels in an inch of an SVG.
const SVG_DPI: f32 = 96.0;
/// Larger images are refused.
const MOST_PIXELS: f32 = 2.5e8;

fn tree(svg: &str) -> Result<usvg::Tree> {
    let options = usvg::Options {
        fontdb: Arc::clone(&FONTS),
        font_family: "DejaVu Sans".into(),
        dpi: SVG_DPI,
        ..usvg::Options::default()
    };
    usvg::Tree::from_str(svg, &options)
        .map_err(|error| Error::invalid(format!("the picture cannot be drawn: {error}")))
}

/// A picture of [`super::svg`] as PNG, so many pixels an inch.
/// # Errors
/// [`Error::Invalid`] for a resolution that is none, and for an image of more than 250 million pixels.
pub fn png(svg: &str, dpi: f32) -> Result<Vec<u8>> {
    let tree = tree(svg)?;
    let scale = dpi / SVG_DPI;
    let (width, height) = (tree.size().width() * scale, tree.size().height() * scale);
    if !(width >= 1.0 && height >= 1.0 && width * height <= MOST_PIXELS) {
        return Err(Error::invalid(format!(
            "a picture of {width:.0} by {height:.0} pixels cannot be made; choose another resolution or width"
        )));
    }
    let mut pixels = Pixmap::new(width.ceil() as u32, height.ceil() as u32)
        .ok_or_else(|| Error::invalid("the picture is too large to be made of pixels"))?;
    resvg::render(
        &tree,
        Transform::from_scale(scale, scale),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| Error::invalid(format!("the picture cannot be written as PNG: {error}")))
}

/// A picture of [`super::svg`] as a page of PDF, with text as text.
/// # Errors
/// [`Error::Invalid`] if it cannot be drawn.
pub fn pdf(svg: &str) -> Result<Vec<u8>> {
    let page = svg2pdf::PageOptions { dpi: SVG_DPI };
    svg2pdf::to_pdf(&tree(svg)?, svg2pdf::ConversionOptions::default(), page)
        .map_err(|error| Error::invalid(format!("the picture cannot be written as PDF: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Look, SvgOptions, svg, test_scores};

    #[test]
    fn a_picture_is_drawn_with_its_own_font() {
        let scores = test_scores(&["<a>", "\u{e9}t\u{e9}", "&"], 3);
        let options = |width| SvgOptions {
            look: Look {
                width,
                ..Look::default()
            },
            ..SvgOptions::default()
        };
        let picture = svg(&scores, &options(None)).unwrap();
        let image = png(&picture, 96.0).unwrap();
        let size = |png: &[u8]| {
            let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
            (number(16), number(20))
        };
        let (width, height) = size(&image);
        assert!(image.starts_with(b"\x89PNG") && width > 100 && height > 50);
        assert_eq!(
            size(&png(&picture, 192.0).unwrap()),
            (2 * width, 2 * height)
        );
        // 360 points are 5 inches.
        let wide = svg(&scores, &options(Some(360.0))).unwrap();
        assert_eq!(size(&png(&wide, 100.0).unwrap()).0, 500);
        // Letters are drawn: without them the image is another.
        let without = picture.replace("<text ", "<text display='none' ");
        assert!(png(&without, 96.0).unwrap() != image);
        assert!(
            png(&picture, 0.0).is_err()
                && png(&picture, 1e9).is_err()
                && png(&picture, f32::NAN).is_err()
        );
        assert!(pdf(&picture).unwrap().starts_with(b"%PDF"));
    }
}
