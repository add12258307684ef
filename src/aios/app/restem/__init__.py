"""ReST-EM as jobs: optimise, watch, compare, estimate, tune. `job` is where to begin reading."""
