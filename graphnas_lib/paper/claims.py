"""Every claim of the paper's text: our words, its numbers as printed, and the notebook that answers it.

Notebook 12 sets our number and a status beside each. A note says where a claim does not stand with the paper's own
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One claim of the paper's text.

    Attributes:
        id: short name, stable.
        text: the claim in our words.
        numbers: its numbers as printed in the paper, () for a claim in words.
        where: section, figure or table that makes it.
        notebook: number of the notebook that answers it.
        note: how the claim stands with the paper's own numbers, "" when they agree or are silent.
    """

    id: str
    text: str
    numbers: tuple[str, ...]
    where: str
    notebook: str
    note: str = ""


CLAIMS = (
    # Section 3: the spaces
    Claim(
        "operations",
        "A node takes one of 28 operations: 9 types with 3 kernel sizes, and skip.",
        ("28", "9 op. types", "3 kernel size"),
        "Sec. 3",
        "01",
    ),
    Claim("micro-space", "Up to about 10^17 cells, isomorphism not counted.", ("10^{17}",), "Sec. 3", "01"),
    Claim(
        "macro-space",
        "Up to about 10^390 architectures of 20 triples.",
        ("127", "10^{390}"),
        "Sec. 3",
        "01",
        "{8, 16, ..., 1024} has 128 members, not 127; the exponent is unchanged",
    ),
    Claim(
        "hl-space",
        "Families reduce the macro space to about 10^78.",
        ("10^{78}",),
        "Sec. 3.3",
        "01",
        "gives K = 31.3; the text names no K",
    ),
    # Section 3.1: clusters and latent space
    Claim("clusters", "A GMM on ZC vectors finds separate families of cells.", ("4 clusters",), "Fig. 2a", "02"),
    Claim(
        "criteria",
        "BIC and AIC reach a plateau that decides the number of clusters.",
        (),
        "Sec. 3.1",
        "02",
        "the chosen number is not printed",
    ),
    Claim(
        "regularised-latent",
        "Triplet and predictor terms keep ZC families together in latent space; naive training does not.",
        (),
        "Fig. 2b-c",
        "03",
    ),
    Claim(
        "predictor",
        "The ZC vector of a cell can be predicted from its latent code.",
        (),
        "Sec. 3.1, Eq. 5",
        "03",
        "no error is printed",
    ),
    # Section 3.2, Table 1
    Claim(
        "decoding",
        "Random latents decode to a valid cell in 9 of 20 cases; neighbourhood and CCNF samples always.",
        ("9/20", "20/20"),
        "Tab. 1",
        "05",
    ),
    Claim(
        "focus",
        "CCNF samples lie closer to the reference in ZC space than neighbourhood samples.",
        ("788±10", "793±49", "78±13", "92±29"),
        "Sec. 3.2, Tab. 1",
        "05",
        "true of NASWOT and SNIP; parameters and FLOPs are not narrower and lie about 45% low",
    ),
    Claim(
        "mean-accuracy",
        "CCNF sampling has almost 1 percentage point higher mean accuracy than the neighbourhood.",
        ("almost 1 percentage point", "93.08±0.85", "92.15±1.13"),
        "Sec. 3.2, Tab. 1",
        "05",
    ),
    Claim("worst-case", "CCNF sampling has the better worst case.", ("91.89", "89.76"), "Sec. 3.2, Tab. 1", "05"),
    Claim(
        "best-case",
        "CCNF sampling finds a cell better than the reference; the neighbourhood does not.",
        ("94.55", "94.24", "94.13"),
        "Sec. 3.2, Tab. 1",
        "05",
        "the benchmark lists 94.37 for the reference",
    ),
    # Section 3.3: sequence generator
    Claim(
        "conditioning",
        "The generator follows a requested number of parameters and FLOPs.",
        (),
        "Sec. 3.3",
        "07",
        "no error is printed",
    ),
    Claim(
        "evolved-history",
        "Training on the evolution's history biases the generator to high T-CET at a given size, unlike random models.",
        (),
        "Sec. 3.3, Eq. 10-11",
        "07",
    ),
    # Section 4: cost
    Claim(
        "pretraining-cost",
        "All pretraining takes about 30 GPU hours on one V100, 14 of them the evolution.",
        ("around 30 GPU hours", "14 GPU hours"),
        "Sec. 4, Tab. 5",
        "11",
        "Table 5 sums to 31",
    ),
    Claim(
        "cell-models-cost",
        "G-VAE and CCNF together take 5.5 GPU hours.",
        ("5.5 GPU hours",),
        "Sec. 4, Tab. 5",
        "11",
        "Table 5: 5 for data, 0.5 + 0.5 for training",
    ),
    Claim(
        "hidden-cost",
        "Pretraining the GPT from scratch would take about 910 A100 hours.",
        ("2.25 \\times 10^{20}", "910 GPU hours", "44%"),
        "Sec. 4",
        "11",
        "holds at the TF32 peak of 156 TFLOP/s, called FP32 in the text",
    ),
    # Section 4.1, Table 2
    Claim(
        "superior",
        "GraphNet with the generative models beats evolution-based zero-cost NAS on C-10 and C-100.",
        ("97.6", "97.2", "81.0", "80.4"),
        "Sec. 4.1, Tab. 2",
        "08",
    ),
    Claim(
        "superset",
        "GraphNet is a strict superset of the ZenNet design space.",
        (),
        "Sec. 4.1",
        "08",
        "it is not: ZenNet has kernel 7, expansions 1 and 4, and squeeze-excitation",
    ),
    Claim(
        "space-is-not-enough",
        "Plain Evo(T-CET) loses 0.8 points on C-10 and on C-100 when moved to GraphNet.",
        ("0.8 percentage points", "96.4", "79.6"),
        "Sec. 4.1, Tab. 2",
        "08",
    ),
    Claim(
        "hl-evo",
        "HL-Evo with CCNF improves on every earlier method at a fraction of the cost.",
        ("97.4", "80.9", "3.6", "20,000"),
        "Sec. 4.1, Tab. 2",
        "08",
    ),
    Claim(
        "sequence-generator",
        "The generator equals or slightly improves HL-Evo in minutes, with 100 ZC evaluations.",
        ("97.6", "81.0", "0.08", "100"),
        "Sec. 4.1, Tab. 2",
        "08",
    ),
    # Section 4.2, Table 3
    Claim(
        "imagenet-450", "450M FLOPs: 78.3% top-1, mean of 3 searches.", ("78.3±0.2", "429"), "Sec. 4.2, Tab. 3", "09"
    ),
    Claim("imagenet-600", "600M FLOPs: 79.5% top-1.", ("79.5±0.1", "593"), "Tab. 3", "09"),
    Claim("imagenet-1000", "1000M FLOPs: 80.6% top-1.", ("80.6±0.4", "964"), "Tab. 3", "09"),
    Claim(
        "imagenet-rank",
        "At 450M only OFA (with supernet weights) and GPT NAS are better.",
        ("79.1",),
        "Sec. 4.2, Tab. 3",
        "09",
    ),
    Claim(
        "gpt-nas-size",
        "GPT NAS is almost 33 times larger.",
        ("33\\times", "110.9"),
        "Sec. 4.2",
        "09",
        "110.9M against the 4.3M of Table 3 is a factor 25.8",
    ),
    # Section 4.3, Table 4
    Claim("nb360-wrn", "Better than the Wide-ResNet on 5 of 8 tasks.", ("5/8",), "Sec. 4.3, Tab. 4", "10"),
    Claim(
        "nb360-dash",
        "Better than DASH on 4 of 8 tasks.",
        ("4/8",),
        "Sec. 4.3, Tab. 4",
        "10",
        "3 of 8 and one tie (ECG)",
    ),
    Claim(
        "nb360-failures",
        "DeepSEA and Satellite fail noticeably.",
        ("0.50", "18.11"),
        "Sec. 4.3, Tab. 4",
        "10",
        "0.50 on DeepSEA is chance",
    ),
    Claim("nb360-cost", "Generating models for a new task takes minimal time, no feedback used.", (), "Sec. 4.3", "10"),
    # Appendices
    Claim(
        "history-size",
        "The generator learns from 60,000 networks of the HL-Evo runs.",
        ("60,000", "T = 20000", "N = 512"),
        "App. A, C",
        "06",
        "three runs of T = 20,000",
    ),
    Claim(
        "reduced-training-selection",
        "Selecting by reduced training instead of T-CET costs 20 GPU hours and gives 97.3 instead of 97.6.",
        ("97.3", "97.6", "40 models", "5^4", "20h"),
        "App. E.1",
        "08",
    ),
    Claim(
        "flat-evolution",
        "Evolution with reduced training on flat GraphNet reaches 90.32 in about 20 GPU hours (others: 96.4, 97.6).",
        ("90.32", "96.4", "97.6", "20 GPU hours"),
        "App. E.2",
        "08",
    ),
)
