"""From run records to tidy tables, statistics, comparisons and the paper's section 7."""
