// Package report shows results as pages for people: one HTML file with all that
// it needs in it, no scripts and nothing from the network, the same bytes for the
// same results. It computes nothing but shares of what it is given, and knows
// neither models nor measurements: whoever has results fills its types.
package report
