// dirty: fills memory with stamped pages.

import CPlatform
import KernelMemory
import MemoryPrimitives
import Paging
import PhysicalMemory
import Workloads

extension CommandDescription {
  static var dirty: CommandDescription {
    CommandDescription(
      name: "dirty", usage: "dirty SHARE | SIZE | free",
      about: """
        Fills a share of memory with dirty pageable pages, each with a stamp,
        scattered over memory; with swap the share may be more than all of
        it. What fits stays where memory ends, and at Ctrl-C what is filled so
        far. free frees all of them.
        """,
      example: "dirty 90%", question: .trial,
      completion: .words("free"))
  }
}

/// The fills of `dirty`, the oldest first. Valid as zeroes.
struct Fills {
  static var capacity: Int { 8 }
  var count: Int
  /// Fills since boot: no two have the same stamps.
  var ever: UInt64
  var list: InlineArray<8, DirtyPages>
}

extension Shell {

  var fills: UnsafeMutablePointer<Fills> { inPlace(&state.pointee.fills) }
  var fillList: UnsafeMutablePointer<DirtyPages> {
    UnsafeMutableRawPointer(inPlace(&state.pointee.fills.list)).assumingMemoryBound(to: DirtyPages.self)
  }
  var fillCount: Int { fills.pointee.count }

  func dirty(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      throw arguments.missing(
        "How much? Usage: \(arguments.usage); as in dirty 90%, dirty 64M.")
    }
    if word.bytes == "free" {
      try arguments.end()
      try freeFills()
      return
    }
    let count = try pages(word, arguments)
    try arguments.end()
    guard count > .zero else { throw refuse(word, "less than a page") }
    guard count <= share(1000) else { throw refuse(word, "too large: 1000 % of memory are the most") }
    guard fillCount < Fills.capacity else {
      throw fail("\(Fills.capacity) fills are the most. dirty free frees all of them.")
    }
    var before = memory.paging.figures
    var start = cp_cycles()
    switch attempt(count) {
    case .filled(let fill):
      keep(fill)
      report(fill, before, cp_cycles() &- start)
    case .ended(let error, let fitted):
      report(error, at: fitted, of: count)
      (before, start) = (memory.paging.figures, cp_cycles())
      guard error == .noMemory, fitted > Self.spared,
        case .filled(let fill) = attempt(fitted - Self.spared)
      else {
        print("The pages are freed again; \(count: physical.freeCount.rawValue, "frame") are free.")
        throw .failed
      }
      keep(fill)
      print("The pages that fit are filled, and stay; dirty free frees them.")
      report(fill, before, cp_cycles() &- start)
      if !isJSON {
        if memory.paging.swap.device == nil {
          print("! There is no swap to write to: dirty less, or boot with SWAP=. Type: swap")
        } else {
          print("! Memory and swap are full. Type: swap")
        }
      }
      throw .failed
    }
  }

  /// The frames that a fill leaves when memory ends, so that pages can be read back from swap.
  private static var spared: PageCount { PageCount(UInt64(64)) }

  private func keep(_ fill: DirtyPages) {
    fillList[fillCount] = fill
    fills.pointee.count += 1
  }

  /// A share of all frames in percent, or a size.
  private func pages(_ word: Word, _ arguments: Arguments) throws(CommandError) -> PageCount {
    guard word.bytes.count > 1, word.bytes[word.bytes.count - 1] == UInt8(ascii: "%") else {
      return try arguments.size(word).pagesRoundedUp
    }
    let figure = arguments.part(of: word, from: 0, to: word.bytes.count - 1)
    let percent = try arguments.number(figure)
    guard percent <= 1000 else { throw refuse(word, "too large: 1000 % of memory are the most") }
    return share(percent)
  }

  /// `percent` of all frames.
  func share(_ percent: UInt64) -> PageCount { PageCount(physical.total.rawValue * percent / 100) }

  /// Fills `count` new dirty pages, with a progress bar. When memory ends before, prints so and keeps none; Ctrl-C
  /// keeps the pages filled so far.
  func fill(_ count: PageCount) throws(CommandError) -> DirtyPages {
    switch attempt(count) {
    case .filled(let fill): return fill
    case .ended(let error, let fitted):
      report(error, at: fitted, of: count)
      throw .failed
    }
  }

  private enum Attempt {
    case filled(DirtyPages)
    /// The error, and the count of pages that were filled and freed again.
    case ended(PagingError, PageCount)
  }

  private func attempt(_ count: PageCount) -> Attempt {
    fills.pointee.ever += 1
    var done = PageCount.zero
    var bar = Bar(self)
    defer { bar.end() }
    do throws(PagingError) {
      return .filled(
        try DirtyPages.fill(
          count, seed: fills.pointee.ever &* 0x2545_f491_4f6c_dd1d, on: memory, access
        ) {
          done = PageCount($0)
          return bar.goesOn("dirty", $0, of: count.rawValue, "pages") ? .goOn : .stop
        })
    } catch {
      return .ended(error, done)
    }
  }

  private func report(_ error: PagingError, at fitted: PageCount, of count: PageCount) {
    let page: Line = "Page \(count: fitted.rawValue + 1) of \(count: count.rawValue)"
    guard error == .noMemory else {
      _ = fail("\(page): \(error.description).")
      return
    }
    let reserve = physical.reserve(for: .normal).rawValue
    _ = fail("\(page): memory is full, but for the reserve of \(count: reserve, "frame").")
  }

  private func report(_ fill: DirtyPages, _ before: PagingFigures, _ cycles: UInt64) {
    let now = memory.paging.figures
    let resident = min(memory.paging.residentCount(fill.object), fill.filled)
    let away = fill.filled - resident
    let written = now.written - before.written
    row("dirty") { row in
      row.field("pages", fill.filled.rawValue)
      row.field("bytes", fill.filled.bytes.rawValue)
      row.field("address", fill.address)
      row.field("object", UInt64(fill.object.number))
      row.field("resident", resident.rawValue)
      row.field("swapped", away.rawValue)
      row.field("written", written)
      row.field("free", physical.freeCount.rawValue)
      row.cost(cycles, costUnit)
    }
    var first: Line =
      "\(count: fill.filled.rawValue, "page"), \(fill.filled.bytes), each stamped: \(count: resident.rawValue) in memory"
    first.append(line: ", \(count: away.rawValue) in swap.")
    var second = Line()
    if written == 0 { second.append("Nothing was written. ") }
    if written > 0 { second.append(line: "\(count: written, "page") went to swap. ") }
    second.append(line: "\(count: physical.freeCount.rawValue, "frame") are free. Type: contig 2M")
    if isStopped("Stopped; the pages filled so far stay.") {
      tellDone { print(first) }
    } else {
      print(first)
      print(second)
    }
  }

  private func freeFills() throws(CommandError) {
    for i in 0..<fillCount {
      let fill = fillList[i]
      let wired = memory.paging.figures(of: fill.object).wired.rawValue
      if wired > 0 {
        throw fail(
          "\(count: wired, "page") from \(fill.address) on are wired: unwire them first.")
      }
    }
    let count = fillCount
    let pages = freeFills(from: 0)
    tellEnd { reportFreed(count, pages) }
  }

  private func reportFreed(_ count: Int, _ pages: PageCount) {
    if isJSON {
      row("dirty_freed") { row in
        row.field("fills", UInt64(count))
        row.field("pages", pages.rawValue)
        row.field("free", physical.freeCount.rawValue)
      }
    } else if count == 0 {
      print("Nothing is filled. As in: dirty 90%")
    } else {
      print(
        "Freed \(count: pages.rawValue, "page") of \(count: UInt64(count), "fill"). \(count: physical.freeCount.rawValue, "frame") are free."
      )
    }
  }

  /// Frees all fills but the first `first`. Answers the count of their pages.
  @discardableResult func freeFills(from first: Int) -> PageCount {
    var pages = PageCount.zero
    while fillCount > first {
      fills.pointee.count -= 1
      let fill = fillList[fillCount]
      pages = pages + fill.filled
      fill.release(memory)
    }
    return pages
  }
}
