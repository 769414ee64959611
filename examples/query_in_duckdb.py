"""SQL over a release: DuckDB reads the Parquet files in place, and never touches the pixels.

python examples/query_in_duckdb.py [VERSION]
"""

import sys

import duckdb

from cem_assets import readers

QUERY = """
    select dataset,
           count(*) as num_patches,
           avg(informative) as mean_informative,
           sum(num_duplicates) as num_copies_dropped
    from read_parquet($shards)
    group by dataset
    order by dataset
"""


def main() -> None:
    """Count the patches of every dataset of a release."""
    release = readers.read_release(sys.argv[1] if len(sys.argv) > 1 else None)
    # for a store on S3: duckdb.sql("install httpfs; load httpfs; create secret (type s3, provider credential_chain)")
    for dataset, num, informative, copies in duckdb.execute(QUERY, {"shards": list(release.shards)}).fetchall():
        print(f"{dataset:20} {num:8} patches, {informative:.2f} informative on average, stand for {copies} copies")


if __name__ == "__main__":
    main()
