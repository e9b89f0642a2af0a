"""Three gateways, a real Valkey, a real PostgreSQL, and everything that can go wrong with them."""

import os

# The script starts servers while its own channels are at work; gRPC's handlers abort a child that
# is forked in the wrong moment. Read when gRPC is loaded, which this precedes.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
