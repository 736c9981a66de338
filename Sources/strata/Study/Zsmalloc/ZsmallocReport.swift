// The tables and the rows of the study of zsmalloc, and its verdict on the claims of 2012.

import Foundation

struct ZsmallocReport {
  let results: [(sizes: SizeSample, outcomes: [LayoutOutcome])]
  let seed: UInt64

  // MARK: Rows

  var rows: String {
    results.flatMap { sizes, outcomes in outcomes.map { row($0, sizes) } }.joined(separator: "\n")
  }

  private func row(_ outcome: LayoutOutcome, _ sizes: SizeSample) -> String {
    var row = JSONRow("zs_study")
    row.add("sizes", sizes.name)
    row.add("layout", outcome.layout.rawValue)
    row.add("seed", seed)
    row.add("objects", UInt64(outcome.objects))
    row.add("bytes", sizes.bytes)
    row.add("filled", outcome.filled, decimals: 4)
    row.add("filled_compacted", outcome.filledCompacted ?? .nan, decimals: 4)
    row.add("halved", outcome.halved, decimals: 4)
    row.add("halved_compacted", outcome.halvedCompacted ?? .nan, decimals: 4)
    row.add("refilled", outcome.refilled, decimals: 4)
    row.add("metadata_per_object", outcome.metadata, decimals: 2)
    row.add("refused", UInt64(outcome.refused))
    row.add("refused_every_second", UInt64(outcome.refusedEverySecond))
    row.add("refused_random_quarter", UInt64(outcome.refusedRandomQuarter))
    return row.text
  }

  // MARK: Text

  var text: String { ([claims] + results.map(table) + [verdict]).joined(separator: "\n\n") }

  private var claims: String {
    """
    The claims about zsmalloc on linux-mm in February 2012, and the rows that test them
    1  The end of any page is joined with the start of any other: much denser.  any end, any start
    2  Its density should be compared with that of zbud and of xvmalloc.        zbud, xvmalloc
    3  To avoid order-1 allocations is hardly worth the effort.                 order-1 blocks
    4  vmap allocates, so it may fail to read what is stored.                   zs-refused of make bench
    Full, half (a random half freed) and again (as many stored as freed) are bytes of objects for each byte of frames
    with those of tables; packed is after compaction. Metadata is bytes an object. Refused are objects: on empty memory,
    and where a quarter more frames are free than then were used, each with an even number, or a random quarter of all.
    Seed \(seed).
    """
  }

  private func table(_ sizes: SizeSample, _ outcomes: [LayoutOutcome]) -> String {
    let lines = [
      "\(sizes.title): \(counted(UInt64(sizes.sizes.count), "object")), mean \(grouped(sizes.mean))",
      "layout                    full  packed    half  packed   again  metadata  refused    even  random",
    ]
    return (lines + outcomes.map(line)).joined(separator: "\n")
  }

  private func line(_ one: LayoutOutcome) -> String {
    let densities = [one.filled, one.filledCompacted, one.halved, one.halvedCompacted, one.refilled]
    let cells =
      [one.layout.title.left(22)] + densities.map { ($0.map(Self.decimal) ?? "-").right(8) }
      + [
        String(format: "%.1f", one.metadata).right(10), grouped(one.refused).right(9),
        grouped(one.refusedEverySecond).right(8), grouped(one.refusedRandomQuarter).right(8),
      ]
    return cells.joined()
  }

  // MARK: Verdict

  private var verdict: String {
    """
    1  Any end with any start fills \(range(.joined, \.filled)) of its frames; Linux' chains of 4 fill \
    \(range(.linux61, \.filled)), Strata's
       \(range(.strata, \.filledCompacted)) when packed. Linux joins the pages of one chain only. With half freed, \
    any end with any start
       is left at \(range(.joined, \.halved)); Strata, packed, at \(range(.strata, \.halvedCompacted)).
    2  zbud fills \(range(.zbud, \.filled)). xvmalloc fills \(range(.xvmalloc, \.filled)): as dense as any, unless \
    many objects take over half a page.
    3  Order-1 blocks fill \(range(.orderOne, \.filled)), and refuse \(refusals(.orderOne)) of objects where every \
    second frame is free; Strata \(refusals(.strata)).
    """
  }

  private func values<T>(_ layout: StudiedLayout, _ value: (LayoutOutcome) -> T?) -> [T] {
    results.flatMap(\.outcomes).filter { $0.layout == layout }.compactMap(value)
  }

  /// The least and the greatest density over all sizes.
  private func range(_ layout: StudiedLayout, _ value: (LayoutOutcome) -> Double?) -> String {
    let values = values(layout, value)
    return "\(Self.decimal(values.min() ?? 0)) to \(Self.decimal(values.max() ?? 0))"
  }

  /// The least and the greatest share of objects that are refused where every second frame is free.
  private func refusals(_ layout: StudiedLayout) -> String {
    let shares = values(layout) { 100 * Double($0.refusedEverySecond) / Double(max(1, $0.objects)) }
    let (least, most) = (Int((shares.min() ?? 0).rounded()), Int((shares.max() ?? 0).rounded()))
    return least == most ? "\(least) %" : "\(least) to \(most) %"
  }

  private static func decimal(_ value: Double) -> String { String(format: "%.3f", value) }
}
