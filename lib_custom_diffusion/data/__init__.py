"""What is learned from: pictures, their captions and views, and the concepts they make up."""
