// A model of the claim on linux-mm that zsmalloc joins the unused end of any page with the unused start of any other.
//
// All lengths are multiples of 16 bytes, as the claim says. An object goes to the gap in one page, or to the pair of
// an end and a start of two pages, which leaves the least unused. With none, the longest end is joined with a new
// page. A gap between two objects can only take an object as a whole.
//
// For each object a record of 16 bytes says where its one or two parts are, and for each page one of 32 bytes is a
// map of what is used. Objects could move, but compaction was no part of the claim.
//
// SOURCES
//   D. Magenheimer, "Re: [PATCH 1/5] staging: zsmalloc: zsmalloc memory allocation library", linux-mm, 8 February
//   2012.

import MemoryPrimitives

final class JoinedPages: ModelLayout {
  /// Lengths and places count units of 16 bytes.
  private static let (unit, whole) = (16, Int(Page.size) / 16)

  private struct Run: Equatable {
    var start: Int
    var end: Int
    var length: Int { end - start }
  }

  private struct UsedPage {
    var frame: FrameNumber
    var record: Int
    var runs: [Run] = []

    /// The gaps between and around the runs.
    var gaps: [Run] {
      var (gaps, at): ([Run], Int) = ([], 0)
      for run in runs {
        if run.start > at { gaps.append(Run(start: at, end: run.start)) }
        at = run.end
      }
      if at < JoinedPages.whole { gaps.append(Run(start: at, end: JoinedPages.whole)) }
      return gaps
    }
  }

  private struct Part {
    var page: Int
    var run: Run
  }

  private let supply: FrameSupply
  private var objectRecords: RecordSlabs
  private var pageRecords: RecordSlabs
  private var pages: [UsedPage?] = []
  private var unused: [Int] = []
  private var objects: [(parts: [Part], record: Int, size: Int)?] = []
  private var dataFrames: UInt64 = 0
  /// Gaps by length: all, those at the end of a page, and those at its start.
  private var gaps: [[Part]]
  private var ends: [[Int]]
  private var starts: [[Int]]

  init(_ supply: FrameSupply) {
    self.supply = supply
    objectRecords = RecordSlabs(bytes: 16, supply)
    pageRecords = RecordSlabs(bytes: 32, supply)
    gaps = Array(repeating: [], count: Self.whole + 1)
    ends = Array(repeating: [], count: Self.whole + 1)
    starts = ends
  }

  var held: HeldFrames {
    HeldFrames(data: dataFrames, tables: objectRecords.frames + pageRecords.frames, headers: 0)
  }

  func store(_ size: Int) -> Int? {
    let length = (size + Self.unit - 1) / Self.unit
    guard let record = objectRecords.allocate() else { return nil }
    guard let parts = bestGap(length) ?? partsWithNewPage(length) else {
      objectRecords.free(record)
      return nil
    }
    for part in parts { occupy(part) }
    objects.append((parts, record, size))
    return objects.count - 1
  }

  func free(_ object: Int) {
    guard let (parts, record, _) = objects[object] else { return }
    objects[object] = nil
    objectRecords.free(record)
    for part in parts { vacate(part) }
  }

  func parts(of object: Int) -> [ObjectPart] {
    guard let (parts, _, size) = objects[object] else { return [] }
    var left = size
    return parts.compactMap { part in
      guard let page = pages[part.page] else { return nil }
      let start = part.run.start * Self.unit
      let count = min(left, part.run.length * Self.unit)
      left -= count
      return ObjectPart(frame: page.frame, bytes: start..<(start + count))
    }
  }

  // MARK: Search

  /// The gap or the pair of gaps that leaves the least unused; nil where an object fits into none.
  private func bestGap(_ length: Int) -> [Part]? {
    let single = (length...Self.whole).first { !gaps[$0].isEmpty }
    let pair = bestPair(length)
    if let single, single <= pair?.total ?? .max, var part = gaps[single].last {
      // The start of a page stays free if it was.
      if part.run.start == 0 {
        part.run.start = part.run.end - length
      } else {
        part.run.end = part.run.start + length
      }
      return [part]
    }
    guard let pair else { return nil }
    return [
      Part(page: pair.end, run: Run(start: Self.whole - pair.endLength, end: Self.whole)),
      Part(page: pair.start, run: Run(start: 0, end: length - pair.endLength)),
    ]
  }

  /// The end of one page and the start of another that together have `length` units or least more.
  private func bestPair(_ length: Int) -> (end: Int, start: Int, endLength: Int, total: Int)? {
    var best: (end: Int, start: Int, endLength: Int, total: Int)?
    // The next length from each on that a start has.
    var nextStart = Array(repeating: Self.whole + 1, count: Self.whole + 2)
    for length in (1...Self.whole).reversed() {
      nextStart[length] = starts[length].isEmpty ? nextStart[length + 1] : length
    }
    for endLength in 0..<length where !ends[endLength].isEmpty {
      var startLength = nextStart[length - endLength]
      while startLength <= Self.whole, endLength + startLength < best?.total ?? .max {
        if let (end, start) = differentPages(ends[endLength], starts[startLength]) {
          best = (end, start, endLength, endLength + startLength)
        }
        startLength = nextStart[startLength + 1]
      }
    }
    return best
  }

  private func differentPages(_ ends: [Int], _ starts: [Int]) -> (Int, Int)? {
    for end in ends.suffix(2) {
      if let start = starts.suffix(2).last(where: { $0 != end }) { return (end, start) }
    }
    return nil
  }

  /// A new page, joined with the longest end that there is.
  private func partsWithNewPage(_ length: Int) -> [Part]? {
    let endLength = (0..<length).last { !ends[$0].isEmpty } ?? 0
    let end = ends[endLength].last
    guard let page = addPage() else { return nil }
    let rest = Part(page: page, run: Run(start: 0, end: length - endLength))
    guard let end else { return [rest] }
    return [Part(page: end, run: Run(start: Self.whole - endLength, end: Self.whole)), rest]
  }

  // MARK: Pages

  private func addPage() -> Int? {
    guard let record = pageRecords.allocate() else { return nil }
    guard let frame = supply.allocate() else {
      pageRecords.free(record)
      return nil
    }
    dataFrames += 1
    let page = UsedPage(frame: frame, record: record)
    if let number = unused.popLast() {
      pages[number] = page
      return number
    }
    pages.append(page)
    return pages.count - 1
  }

  private func occupy(_ part: Part) {
    change(part.page) { page in
      let at = page.runs.firstIndex { $0.start > part.run.start } ?? page.runs.count
      page.runs.insert(part.run, at: at)
    }
  }

  private func vacate(_ part: Part) {
    change(part.page) { page in page.runs.removeAll { $0 == part.run } }
    guard let page = pages[part.page], page.runs.isEmpty else { return }
    supply.free(page.frame)
    pageRecords.free(page.record)
    pages[part.page] = nil
    unused.append(part.page)
    dataFrames -= 1
  }

  /// Changes a page, and enters its gaps anew. A page without objects has none.
  private func change(_ number: Int, _ body: (inout UsedPage) -> Void) {
    guard var page = pages[number] else { return }
    if !page.runs.isEmpty {
      for gap in page.gaps {
        gaps[gap.length].removeAll { $0.page == number && $0.run == gap }
        if gap.end == Self.whole { ends[gap.length].removeAll { $0 == number } }
        if gap.start == 0 { starts[gap.length].removeAll { $0 == number } }
      }
    }
    body(&page)
    pages[number] = page
    if page.runs.isEmpty { return }
    for gap in page.gaps {
      gaps[gap.length].append(Part(page: number, run: gap))
      if gap.end == Self.whole { ends[gap.length].append(number) }
      if gap.start == 0 { starts[gap.length].append(number) }
    }
  }
}
