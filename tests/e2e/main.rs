//! What people do with local volumes, on two nodes with real kubelets and containers: the image
//! as a pod, the chart installed by helm. Each scenario is a file, and named in docs.

#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;

mod mariadb;
mod offers;
mod stage;

/// The scenarios' modules, each with the `CLASSES` that it wants the chart installed with.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(mod $name;)*
        /// All classes: of each its name and further fields, as JSON.
        const CLASSES: &[&[(&str, &str)]] = &[$($name::CLASSES),*];
    };
}

scenarios! {
    ballast
    profile
    s01
    s02
    s03
    s04
    s05
    s06
    s07
    s08
    s09
    s10
    s11
    s12
    s13
    s14
    s15
    s17
    s18
    s19
    s20
    s21
    s22
    stage_test
}
