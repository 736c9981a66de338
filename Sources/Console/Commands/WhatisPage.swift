// whatis, of pageable memory: the object of the page, the place of its contents, the ranges that map it, and the
// claims on it.

import PageTables
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory

/// A page of an object, found by an address or by a frame.
struct FoundPage {
  let object: MemoryObject
  let index: UInt64
  let facts: PageFacts

  /// `page 3 of object 2 "dirty"`.
  var name: Line { "page \(count: index) of object \(object.title)" }

  /// Describes the page at an address.
  func answer(at address: VirtualAddress) -> Line {
    let place = facts.description.place.description
    let offset = address.offsetInPage
    return offset == 0
      ? "Pageable memory: \(name), \(place)" : "\(count: offset, "byte") into \(name), \(place)"
  }
}

extension Shell {
  /// Mappings of a page that are listed one by one.
  private static var shownRanges: UInt64 { 4 }

  private func page(_ number: UInt32, _ index: UInt64) -> FoundPage? {
    guard let object = memory.paging.object(numbered: number), index < object.pageCount.rawValue else {
      return nil
    }
    return FoundPage(object: object, index: index, facts: memory.paging.facts(of: object, page: index))
  }

  /// The pageable range that holds an address, and the page that it maps there.
  func pageableRange(at address: VirtualAddress) -> (range: PageableRange, page: FoundPage)? {
    guard let range = memory.paging.range(endingFrom: address), range.address <= address else { return nil }
    let index = range.offset.rawValue + (address.rawValue - range.address.rawValue) >> Page.shift
    guard let page = page(range.object, index) else { return nil }
    return (range, page)
  }

  /// The page that a frame holds, also a cached one.
  func page(in frame: FrameDescription) -> FoundPage? {
    let isCached = frame.role == .free && frame.pageFlags.contains(.cached)
    guard frame.role == .pageable || isCached, let page = page(frame.owner, frame.index),
      page.facts.description.frame == frame.frame
    else { return nil }
    return page
  }

  /// Prints the facts on a page: its object, queue, state, copy in swap, and the ranges that map it besides `known`.
  func printPage(_ page: FoundPage, besides known: VirtualAddress? = nil) {
    let description = page.facts.description
    let busyWord = description.busyWord
    let isResident = description.place == .resident
    row("page") { row in
      row.field("object", UInt64(page.object.number))
      row.field("name", text: "\(page.object.name)")
      row.field("backing", text: Line(page.object.kind.description))
      row.field("page", page.index)
      row.field("pages", page.object.pageCount.rawValue)
      row.field("place", text: Line(description.place.description))
      row.field("frame", description.frame.map { UInt64($0.rawValue) })
      // These are known of a page in memory only.
      let resident: PageDescription? = isResident ? description : nil
      func truth(_ flag: PageFlags) -> JSONRow.Truth? {
        resident.map { $0.flags.contains(flag) ? .yes : .no }
      }
      row.field("queue", text: resident?.queue.map { Line($0.description) })
      row.field("valid", truth: truth(.valid))
      row.field("dirty", truth: truth(.dirty))
      row.field("referenced", truth: truth(.referenced))
      row.field("wires", resident.map { _ in UInt64(busyWord.wires) })
      row.field("holds", resident.map { _ in UInt64(busyWord.holds) })
      row.field("writers", resident.map { _ in UInt64(busyWord.sbusyCount) })
      row.field("busy", truth: resident.map { _ in busyWord.isXbusy ? .yes : .no })
      row.field("swap_slot", page.facts.copy.map { UInt64($0.rawValue) })
    }
    fact(
      "object", page.object.title,
      "page \(count: page.index) of \(count: page.object.pageCount.rawValue), \(page.object.kind.description)"
    )
    switch description.place {
    case .resident: printState(description)
    case .cached: fact("page", "cached", "free to allocate; a fault reactivates it")
    case .swapped: fact("page", "in swap", "a fault reads it")
    case .onDevice: fact("page", "on its device", "a fault reads it")
    case .untouched: fact("page", "never touched", "a fault fills a frame with zeroes")
    }
    if let copy = page.facts.copy, let device = memory.paging.swap.device {
      fact(
        "swap", "slot \(copy.rawValue) of \(device.name)", isResident ? "a copy, equal to the page" : Line()
      )
    }
    printMappings(of: page, besides: known)
  }

  private func printState(_ description: PageDescription) {
    let busyWord = description.busyWord
    var queue: Line = "no queue"
    if let named = description.queue {
      queue = Line(named.description)
    } else if busyWord.wires > 0 {
      queue.append(": wired")
    } else if busyWord.isXbusy || busyWord.sbusyCount > 0 {
      queue.append(": on its way")
    }
    var flags = Line()
    func add(_ words: StaticString) {
      if flags.count > 0 { flags.append(", ") }
      flags.append(words)
    }
    add(description.flags.contains(.valid) ? "valid" : "not valid yet")
    add(description.flags.contains(.dirty) ? "dirty" : "clean")
    if description.flags.contains(.referenced) { add("referenced") }
    fact("queue", queue, flags)
  }

  /// Prints the ranges that map a page, and how; a JSON row also for the one that is known.
  private func printMappings(of page: FoundPage, besides known: VirtualAddress?) {
    var shown: UInt64 = 0
    memory.paging.forEachRange { range in
      guard range.object == page.object.number, page.index >= range.offset.rawValue,
        page.index - range.offset.rawValue < range.count.rawValue
      else { return }
      let address = range.address + PageCount(page.index - range.offset.rawValue)
      let mapping = memory.pageTables.mapping(at: address)
      row("shown") { row in
        row.field("address", address)
        row.field("rights", text: Line(rights(range.protection)))
        row.field("mapped", truth: mapping == nil ? .no : .yes)
        row.field("writable", truth: mapping?.isWritable == true ? .yes : .no)
      }
      if let known, known.page == address { return }
      shown += 1
      guard shown <= Self.shownRanges || showsAll else { return }
      var how: Line = "\(rights(range.protection)), "
      if let mapping {
        how.append(mapping.isWritable ? "mapped for writing" : "mapped for reading")
        if mapping.isAccessed { how.append(", accessed") }
      } else {
        how.append("not mapped now")
      }
      fact("shown at", "\(address)", how)
    }
    if shown == 0 && known == nil { fact("shown at", "no range maps it", Line()) }
    if shown > Self.shownRanges && !showsEverything {
      print("             and in \(count: shown - Self.shownRanges, "other range"); -a lists all")
    }
  }
}
