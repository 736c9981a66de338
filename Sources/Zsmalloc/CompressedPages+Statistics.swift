// The figures of a store, and their rows in the registry of statistics.

import MemoryPrimitives
import PhysicalMemory
import Synchronization

/// The figures of a store of pages: those that Linux' zram prints as mm_stat, and some more. Exact when nothing runs.
public struct CompressedFigures: Sendable {
  /// Pages that are stored.
  public var pages: PageCount
  /// Objects, those that are no pages included.
  public var objects: UInt64
  /// Bytes of all objects, without what they cost.
  public var bytes: ByteCount
  /// Frames of zspages.
  public var dataFrames: PageCount
  /// Frames of the tables of cells and descriptors.
  public var tableFrames: PageCount
  /// The most frames so far.
  public var peakFrames: PageCount
  /// The most frames that it may have; zero for no limit.
  public var limit: PageCount
  /// Pages that are one repeated word.
  public var sameFilled: PageCount
  /// Objects that have a page of their own.
  public var huge: PageCount
  /// How many there have been since the start.
  public var hugeEver: UInt64
  /// Frames that compaction has freed.
  public var compacted: PageCount

  /// All frames.
  public var frames: PageCount { dataFrames + tableFrames }
}

extension ZspageAllocator {
  /// The most frames that the store may have; zero for no limit. A lower one than it has refuses further objects.
  public var limit: PageCount {
    get { PageCount(state.pointee.limit.load(ordering: .relaxed)) }
    nonmutating set { state.pointee.limit.store(newValue.rawValue, ordering: .relaxed) }
  }
}

extension CompressedPages {
  init(_ context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }

  /// The figures at this moment. Constant.
  public var figures: CompressedFigures {
    let counters = store.lists.quiet.pointee.counters
    return CompressedFigures(
      pages: PageCount(state.pointee.pages.load(ordering: .relaxed)),
      objects: counters.pointee.objects.value, bytes: ByteCount(counters.pointee.bytes.value),
      dataFrames: PageCount(counters.pointee.dataFrames.value),
      tableFrames: PageCount(counters.pointee.tableFrames.value),
      peakFrames: PageCount(counters.pointee.peakFrames.value), limit: store.limit,
      sameFilled: PageCount(state.pointee.sameFilled.load(ordering: .relaxed)),
      huge: PageCount(counters.pointee.huge.value), hugeEver: counters.pointee.hugeEver.value,
      compacted: PageCount(counters.pointee.compactedFrames.value))
  }

  /// Adds the store's rows to the registry.
  package func register(in statistics: Statistics) {
    func row(
      _ name: StaticString, _ unit: StatisticUnit, _ kind: StatisticKind, _ about: StaticString,
      read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(
        Statistic(name, unit, kind, about, context: UnsafeMutableRawPointer(state), read: read))
    }
    row("zs.pages", .pages, .gauge, "pages that are stored") { CompressedPages($0).figures.pages.rawValue }
    row("zs.same_filled", .pages, .gauge, "pages that are one repeated word") {
      CompressedPages($0).figures.sameFilled.rawValue
    }
    row("zs.objects", .objects, .gauge, "objects in zspages") { CompressedPages($0).figures.objects }
    row("zs.bytes", .bytes, .gauge, "bytes of these objects") {
      CompressedPages($0).figures.bytes.rawValue
    }
    row("zs.frames", .pages, .gauge, "frames of zspages and of their tables") {
      CompressedPages($0).figures.frames.rawValue
    }
    row("zs.peak_frames", .pages, .gauge, "the most frames so far") {
      CompressedPages($0).figures.peakFrames.rawValue
    }
    row("zs.huge", .objects, .gauge, "objects that have a page of their own") {
      CompressedPages($0).figures.huge.rawValue
    }
    row("zs.refused", .requests, .counter, "requests to store a page that were refused") {
      CompressedPages($0).state.pointee.refused.load(ordering: .relaxed)
    }
    row("zs.damaged", .events, .counter, "times a page could not be decoded") {
      CompressedPages($0).state.pointee.damaged.load(ordering: .relaxed)
    }
    row("zs.reads_refused", .requests, .counter, "reads that found no memory for new addresses") {
      CompressedPages($0).store.refusedReads
    }
    row("zs.compacted", .pages, .counter, "frames that compaction has freed") {
      CompressedPages($0).figures.compacted.rawValue
    }
    row("zs.objects_moved", .objects, .counter, "objects that compaction has moved") {
      CompressedPages($0).store.lists.quiet.pointee.counters.pointee.movedObjects.value
    }
    row("zs.pages_moved", .pages, .counter, "pages that contiguous requests have moved") {
      CompressedPages($0).store.lists.quiet.pointee.counters.pointee.movedPages.value
    }
    let context = UnsafeMutableRawPointer(state)
    statistics.add(
      Statistic(
        "zs.limit", .pages, .tunable, "the most frames of the store; 0 for no limit",
        range: 0...UInt64(FrameNumber.limit), context: context,
        read: { CompressedPages($0).store.limit.rawValue },
        write: { CompressedPages($0).store.limit = PageCount($1) }))
    statistics.add(
      Statistic(
        "zs.access", .choice, .tunable, "how an object that straddles two pages is reached",
        choices: StraddlingAccess.names, context: context,
        read: { UInt64(CompressedPages($0).store.access.rawValue) },
        write: { CompressedPages($0).store.selectIfPossible($1) }))
  }
}

extension ZspageAllocator {
  /// Selects a way by its number; the one before stays where there is no memory for it, which the failure log says.
  fileprivate func selectIfPossible(_ number: UInt64) {
    guard let access = StraddlingAccess(rawValue: UInt8(truncatingIfNeeded: number)) else { return }
    do throws(ZsmallocError) { try select(access) } catch {}
  }
}
