// Package verify answers two questions about a model: is the file right, and
// how good is it.
//
// Structure checks a model against the description of its family. Perplexity
// scores one model on a text, Compare scores a model beside a reference and
// measures how far their predictions lie apart. Both use the definitions of
// llama.cpp's llama-perplexity, so that the numbers can be compared with
// published ones, and both stream: logits of a few rows are held at a time and
// only statistics per token are kept.
package verify
