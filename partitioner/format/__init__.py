"""What a delegate holds, as bytes: the blob, and the package inside it."""
