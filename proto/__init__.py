"""The contract: `.proto` files, their generator and the generated stubs."""
