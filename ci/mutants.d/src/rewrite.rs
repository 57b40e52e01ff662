// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Puts the mutants of one file into its text, each behind its number.
//!
//! Operands stay what they were parsed as: with `a && b && c` the first `&&` made `||`
//! gives `(a || b) && c`, where a change of the text would give `a || (b && c)`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use proc_macro2::{LineColumn, Literal, Span};
use syn::spanned::Spanned as _;
use syn::visit::Visit;
use syn::visit_mut::{self, VisitMut};
use syn::{BinOp, Block, Expr, ExprBinary, Stmt, UnOp, parse_quote};

use crate::list::{Mutant, Place};

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the text.
    Placed,
    /// No grammar has it: `||` beside a `let` of a chain.
    Ungrammatical,
    /// It must be tried alone.
    Alone(&'static str),
}

struct Rewriter<'m> {
    /// By genre and place: number, replacement, return type.
    wanted: BTreeMap<(&'m str, Place), Vec<(usize, &'m Mutant)>>,
    dropped: &'m BTreeSet<usize>,
    fates: BTreeMap<usize, Fate>,
    /// Inside something that is evaluated by the compiler.
    constant: usize,
    /// By name, what a constant of this file may be instead.
    constants: BTreeMap<String, Vec<(usize, Expr)>>,
    /// Those of them that are used where a choice can stand.
    used: BTreeSet<usize>,
}

/// The constants of a file, wherever they stand.
#[derive(Default)]
struct Constants(Vec<syn::ItemConst>);

impl<'a> Visit<'a> for Constants {
    fn visit_item_const(&mut self, item: &'a syn::ItemConst) {
        self.0.push(item.clone());
    }
}

/// Makes the operator at this place another one.
struct Operator(Place, BinOp);

impl VisitMut for Operator {
    fn visit_expr_binary_mut(&mut self, b: &mut ExprBinary) {
        if place(b.op.span().start()) == self.0 {
            b.op = self.1;
        }
        visit_mut::visit_expr_binary_mut(self, b);
    }
}

/// What the compiler evaluates cannot be switched; but where its value is used a choice can stand.
fn constants(
    file: &syn::File,
    mutants: &[(usize, &Mutant)],
    dropped: &BTreeSet<usize>,
) -> BTreeMap<String, Vec<(usize, Expr)>> {
    let mut all = Constants::default();
    all.visit_file(file);
    let mut found: BTreeMap<String, Vec<(usize, Expr)>> = BTreeMap::new();
    for item in &all.0 {
        let name = item.ident.to_string();
        if all.0.iter().filter(|i| i.ident == item.ident).count() > 1 {
            continue;
        }
        let (from, to) = (place(item.span().start()), place(item.span().end()));
        for (number, mutant) in mutants {
            let at = mutant.span.start;
            if !(from..to).contains(&at)
                || mutant.genre != "BinaryOperator"
                || dropped.contains(number)
            {
                continue;
            }
            let Ok(op) = syn::parse_str(&mutant.replacement) else {
                continue;
            };
            let (ty, mut value) = (&item.ty, item.expr.clone());
            Operator(at, op).visit_expr_mut(&mut value);
            if value != item.expr {
                let way = parse_quote!({ const __C: #ty = #value; __C });
                found.entry(name.clone()).or_default().push((*number, way));
            }
        }
    }
    found
}

/// The text with the mutants of this file, and what became of each.
pub fn rewrite(
    text: &str,
    mutants: &[(usize, &Mutant)],
    dropped: &BTreeSet<usize>,
) -> Result<(String, BTreeMap<usize, Fate>)> {
    let mut file = syn::parse_file(text).context("not Rust")?;
    let mut wanted: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, mutant) in mutants {
        let key = (mutant.genre.as_str(), mutant.span.start);
        wanted.entry(key).or_default().push((*number, *mutant));
    }
    let constants = constants(&file, mutants, dropped);
    let mut rewriter = Rewriter {
        wanted,
        dropped,
        fates: BTreeMap::new(),
        constant: 0,
        constants,
        used: BTreeSet::new(),
    };
    rewriter.visit_file_mut(&mut file);
    let mut fates = rewriter.fates;
    fates.extend(rewriter.used.iter().map(|n| (*n, Fate::Placed)));
    for (number, _) in mutants {
        fates
            .entry(*number)
            .or_insert(Fate::Alone("its place was not found"));
    }
    Ok((prettyplease::unparse(&file), fates))
}

fn place(at: LineColumn) -> Place {
    Place {
        line: at.line,
        column: at.column + 1,
    }
}

/// The expression that asks for a number.
fn on(number: usize) -> Expr {
    let number = Literal::usize_unsuffixed(number);
    parse_quote!(crate::mutant_switch::on(#number))
}

/// The same, with what tells whether the mutant makes a difference here.
fn on_if(number: usize, differs: &Expr) -> Expr {
    let number = Literal::usize_unsuffixed(number);
    parse_quote!(crate::mutant_switch::on_if(#number, || #differs))
}

/// `if on(1) { A } else if on(2) { B } else { ORIGINAL }`, in parentheses.
fn choice(ways: Vec<(usize, Expr)>, original: Expr) -> Expr {
    let all = ways.into_iter().map(|(n, way)| (on(n), way));
    choice_by(all.collect(), original)
}

fn choice_by(ways: Vec<(Expr, Expr)>, original: Expr) -> Expr {
    let mut all: Expr = parse_quote!({ #original });
    for (on, way) in ways.into_iter().rev() {
        all = match &all {
            Expr::Block(_) | Expr::If(_) => parse_quote!(if #on { #way } else #all),
            _ => unreachable!("a block or an if"),
        };
    }
    parse_quote!((#all))
}

/// Whether a `let` of a chain is among the operands.
fn has_let(e: &Expr) -> bool {
    match e {
        Expr::Let(_) => true,
        Expr::Binary(b) if matches!(b.op, BinOp::And(_)) => has_let(&b.left) || has_let(&b.right),
        _ => false,
    }
}

impl<'m> Rewriter<'m> {
    /// The mutants of this kind here that are to be put into the text.
    fn take(&mut self, genre: &'static str, at: Span) -> Vec<(usize, &'m Mutant)> {
        let mut found = self
            .wanted
            .remove(&(genre, place(at.start())))
            .unwrap_or_default();
        if self.constant > 0 {
            self.put_aside(&found, Fate::Alone("it is evaluated by the compiler"));
            return Vec::new();
        }
        self.put_aside(&found, Fate::Placed);
        found.retain(|(number, _)| !self.dropped.contains(number));
        found
    }

    fn put_aside(&mut self, list: &[(usize, &Mutant)], fate: Fate) {
        self.fates
            .extend(list.iter().map(|(number, _)| (*number, fate)));
    }

    fn constant(&mut self, go: impl FnOnce(&mut Self)) {
        self.constant += 1;
        go(self);
        self.constant -= 1;
    }

    fn function(&mut self, signature: &syn::Signature, block: &mut Block) {
        if signature.constness.is_some() {
            return self.constant(|s| {
                s.body(block);
                s.visit_block_mut(block);
            });
        }
        let early = self.body(block);
        self.visit_block_mut(block);
        block.stmts.splice(0..0, early);
    }

    /// The early returns of a body.
    fn body(&mut self, block: &mut Block) -> Vec<Stmt> {
        let Some(first) = block.stmts.first() else {
            return Vec::new();
        };
        let mut early = Vec::new();
        for (number, mutant) in self.take("FnValue", first.span()) {
            let returned = mutant.function.as_ref().map_or("", |f| &f.return_type);
            // The type is the tail's: no other one can be returned, but less of it.
            if returned.contains("impl Iterator")
                && mutant.replacement == "::std::iter::empty()"
                && let Some(Stmt::Expr(tail, None)) = block.stmts.last_mut()
            {
                let on = on(number);
                *tail = parse_quote!((#tail).filter(|_| !#on));
                continue;
            }
            let Ok(value) = syn::parse_str::<Expr>(&mutant.replacement) else {
                self.put_aside(
                    &[(number, mutant)],
                    Fate::Alone("its text is no expression"),
                );
                continue;
            };
            if returned.contains("impl ") {
                let why = Fate::Alone("the function returns some type that it does not name");
                self.put_aside(&[(number, mutant)], why);
                continue;
            }
            let on = on(number);
            early.push(parse_quote!(if #on { return #value; }));
        }
        early
    }

    fn binary(&mut self, b: &mut ExprBinary) -> Option<Expr> {
        let at = b.op.span();
        visit_mut::visit_expr_binary_mut(self, b);
        let found = self.take("BinaryOperator", at);
        if found.is_empty() {
            return None;
        }
        let (left, op, right) = (&b.left, b.op, &b.right);
        let logical = matches!(op, BinOp::And(_) | BinOp::Or(_));
        if logical && (has_let(left) || has_let(right)) {
            self.put_aside(&found, Fate::Ungrammatical);
            return None;
        }
        let mut ways: Vec<(usize, BinOp)> = Vec::new();
        for (number, mutant) in found {
            match syn::parse_str(&mutant.replacement) {
                Ok(op) => ways.push((number, op)),
                Err(_) => {
                    self.put_aside(&[(number, mutant)], Fate::Alone("not an operator"));
                }
            }
        }
        // Nothing is evaluated twice, and no text doubled: else chains would grow without bounds.
        if logical {
            let (number, _) = *ways.first()?;
            let on = on(number);
            let and = matches!(op, BinOp::And(_));
            let goes_on: Expr = if and {
                parse_quote!(__l != #on)
            } else {
                parse_quote!(__l == #on)
            };
            return Some(
                parse_quote!((match #left { __l => if #goes_on { #right } else { __l } })),
            );
        }
        let each = |l: Expr, r: Expr| {
            let with = |op: BinOp| parse_quote!(#l #op #r);
            choice(
                ways.iter().map(|(n, op)| (*n, with(*op))).collect(),
                with(op),
            )
        };
        Some(match op {
            BinOp::Eq(_)
            | BinOp::Ne(_)
            | BinOp::Lt(_)
            | BinOp::Le(_)
            | BinOp::Gt(_)
            | BinOp::Ge(_) => {
                // Comparing changes nothing: what it would say is asked where it is looked for.
                let with = |op: BinOp| -> Expr { parse_quote!((*__l #op *__r)) };
                let own = with(op);
                let ways = ways.iter().map(|(n, op)| {
                    let way = with(*op);
                    (on_if(*n, &parse_quote!(#way != #own)), way)
                });
                let all = choice_by(ways.collect(), own.clone());
                parse_quote!((match (&(#left), &(#right)) { (__l, __r) => #all }))
            }
            BinOp::Add(_)
            | BinOp::Sub(_)
            | BinOp::Mul(_)
            | BinOp::Div(_)
            | BinOp::Rem(_)
            | BinOp::Shl(_)
            | BinOp::Shr(_)
            | BinOp::BitAnd(_)
            | BinOp::BitOr(_)
            | BinOp::BitXor(_) => {
                let all = each(parse_quote!(__l), parse_quote!(__r));
                parse_quote!((match (#left, #right) { (__l, __r) => #all }))
            }
            _ => each((**left).clone(), (**right).clone()),
        })
    }

    /// A constant where it is used.
    fn named(&mut self, p: &syn::ExprPath) -> Option<Expr> {
        let ways = self.constants.get(&p.path.get_ident()?.to_string())?;
        for (number, _) in ways {
            self.used.insert(*number);
        }
        Some(choice(ways.clone(), Expr::Path(p.clone())))
    }

    fn structure(&mut self, s: &mut syn::ExprStruct) -> Option<Expr> {
        let starts: Vec<Span> = s.fields.iter().map(|f| f.span()).collect();
        visit_mut::visit_expr_struct_mut(self, s);
        let mut ways = Vec::new();
        for (i, at) in starts.into_iter().enumerate() {
            for (number, _) in self.take("StructField", at) {
                let mut less = s.clone();
                less.fields = s
                    .fields
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| *n != i)
                    .map(|(_, f)| f.clone())
                    .collect();
                if !less.fields.is_empty() && !less.fields.trailing_punct() {
                    less.fields.push_punct(Default::default());
                }
                ways.push((number, Expr::Struct(less)));
            }
        }
        (!ways.is_empty()).then(|| choice(ways, Expr::Struct(s.clone())))
    }
}

impl VisitMut for Rewriter<'_> {
    fn visit_item_fn_mut(&mut self, f: &mut syn::ItemFn) {
        self.function(&f.sig, &mut f.block);
    }

    fn visit_impl_item_fn_mut(&mut self, f: &mut syn::ImplItemFn) {
        self.function(&f.sig, &mut f.block);
    }

    fn visit_trait_item_fn_mut(&mut self, f: &mut syn::TraitItemFn) {
        if let Some(block) = &mut f.default {
            self.function(&f.sig, block);
        }
    }

    fn visit_item_const_mut(&mut self, item: &mut syn::ItemConst) {
        self.constant(|s| visit_mut::visit_item_const_mut(s, item));
    }

    fn visit_item_static_mut(&mut self, item: &mut syn::ItemStatic) {
        self.constant(|s| visit_mut::visit_item_static_mut(s, item));
    }

    fn visit_impl_item_const_mut(&mut self, item: &mut syn::ImplItemConst) {
        self.constant(|s| visit_mut::visit_impl_item_const_mut(s, item));
    }

    fn visit_type_mut(&mut self, t: &mut syn::Type) {
        self.constant(|s| visit_mut::visit_type_mut(s, t));
    }

    fn visit_pat_mut(&mut self, p: &mut syn::Pat) {
        self.constant(|s| visit_mut::visit_pat_mut(s, p));
    }

    fn visit_expr_repeat_mut(&mut self, r: &mut syn::ExprRepeat) {
        self.visit_expr_mut(&mut r.expr);
        self.constant(|s| s.visit_expr_mut(&mut r.len));
    }

    fn visit_arm_mut(&mut self, arm: &mut syn::Arm) {
        let start = arm.span();
        let guard = arm.guard.as_ref().map(|(_, g)| g.span());
        visit_mut::visit_arm_mut(self, arm);
        if let Some(at) = guard {
            for (number, mutant) in self.take("MatchArmGuard", at) {
                let (_, old) = arm.guard.clone().expect("a guard");
                let new: Expr = match mutant.replacement.as_str() {
                    "true" => {
                        let on = on_if(number, &parse_quote!(!__g));
                        parse_quote!((match #old { __g => #on || __g }))
                    }
                    _ => {
                        let on = on_if(number, &parse_quote!(__g));
                        parse_quote!((match #old { __g => !#on && __g }))
                    }
                };
                arm.guard = Some((Default::default(), Box::new(new)));
            }
        }
        for (number, _) in self.take("MatchArm", start) {
            let on = on(number);
            let new: Expr = match arm.guard.take() {
                Some((_, old)) => parse_quote!((!#on && #old)),
                None => parse_quote!((!#on)),
            };
            arm.guard = Some((Default::default(), Box::new(new)));
        }
    }

    fn visit_expr_mut(&mut self, e: &mut Expr) {
        let new = match e {
            Expr::Binary(b) => self.binary(b),
            Expr::Struct(s) if s.rest.is_some() => self.structure(s),
            Expr::Unary(u) if !matches!(u.op, UnOp::Deref(_)) => {
                let at = u.op.span();
                visit_mut::visit_expr_unary_mut(self, u);
                let found = self.take("UnaryOperator", at);
                let (op, inner) = (u.op, &u.expr);
                found.first().map(|(number, _)| {
                    let all = choice(vec![(*number, parse_quote!(__v))], parse_quote!(#op __v));
                    parse_quote!((match #inner { __v => #all }))
                })
            }
            Expr::Path(p) if self.constant == 0 => self.named(p),
            _ => {
                visit_mut::visit_expr_mut(self, e);
                None
            }
        };
        if let Some(new) = new {
            *e = new;
        }
    }
}
