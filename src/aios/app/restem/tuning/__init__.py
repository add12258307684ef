"""The search for better settings of ReST-EM: `job` is where to begin reading."""
