"""What a teacher says about a scan, carried to other views and kept in a store."""
