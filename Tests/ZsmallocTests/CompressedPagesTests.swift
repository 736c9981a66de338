// Pages in the store: each form comes back as it was; damage is an error and never wrong data.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory
@testable import Zsmalloc

final class CompressedPagesTests: XCTestCase {
  private final class Fixture {
    let zspages: ZspageFixture
    let pages: CompressedPages
    private let state: UnsafeMutableRawPointer
    private let storage: UnsafeMutableRawPointer
    let page: UnsafeMutableRawPointer
    let loaded: UnsafeMutableRawPointer

    var workspace: CompressionWorkspace { CompressionWorkspace(storage) }

    init(frames: UInt64 = 2048) throws {
      zspages = try ZspageFixture(frames: frames)
      state = .allocate(byteCount: Int(CompressedPages.stateSize.rawValue), alignment: 64)
      pages = CompressedPages.create(in: state, store: zspages.store)
      storage = .allocate(byteCount: Int(CompressionWorkspace.size.rawValue), alignment: 64)
      page = .allocate(byteCount: 4096, alignment: 64)
      loaded = .allocate(byteCount: 4096, alignment: 64)
    }

    deinit { for storage in [state, storage, page, loaded] { storage.deallocate() } }

    func fill(_ word: (Int) -> UInt64) {
      for i in 0..<512 { page.storeBytes(of: word(i), toByteOffset: i * 8, as: UInt64.self) }
    }
    func store() throws(ZsmallocError) -> CompressedPage { try pages.store(page, using: workspace) }
    /// Whether the page that was stored is the one at `page`.
    func isSame(_ stored: CompressedPage) throws -> Bool {
      memset(loaded, 0x5a, 4096)
      try pages.load(stored, into: loaded)
      return memcmp(page, loaded, 4096) == 0
    }
  }

  func testEachFormOfAPageComesBack() throws {
    let fixture = try Fixture()
    var random = SeededRandom(seed: 3)
    let kinds: [(CompressedPage.Form, UInt64, (Int) -> UInt64)] = [
      (.sameFilled, 0, { _ in 0 }), (.sameFilled, 0, { _ in .max }),
      (.sameFilled, 0, { _ in 0xdead_beef_dead_beef }), (.sameFilled, 8, { _ in 0x0123_4567_89ab_cdef }),
      (.compressed, 0, { UInt64($0) }), (.compressed, 0, { $0 == 511 ? 1 : 0 }),
      (.compressed, 0, { $0 == 300 ? 1 : 0x0123_4567_89ab_cdef }),
      (.incompressible, 4096, { _ in random.next() }),
    ]
    for (form, bytes, word) in kinds {
      fixture.fill(word)
      let stored = try fixture.store()
      XCTAssertEqual(stored.form, form)
      XCTAssertNotEqual(stored.rawValue, 0)
      if form != .compressed { XCTAssertEqual(stored.byteCount.rawValue, bytes) }
      XCTAssertTrue(try fixture.isSame(stored), "\(form)")
      XCTAssertEqual(fixture.pages.figures.pages, .one)
      XCTAssertEqual(fixture.pages.figures.sameFilled, form == .sameFilled ? .one : .zero)
      fixture.pages.free(stored)
      XCTAssertEqual(fixture.pages.figures.pages, .zero)
      XCTAssertEqual(fixture.pages.figures.sameFilled, .zero)
      fixture.zspages.expectEmpty()
    }
  }

  func testManyPagesStayThemselvesWhileTheStoreIsCompacted() throws {
    let fixture = try Fixture()
    var random = SeededRandom(seed: 4)
    var live: [(CompressedPage, [UInt8])] = []
    for step in 0..<600 {
      // Words of some bits, so that blocks have all lengths.
      let bits = random.below(64)
      fixture.fill { _ in random.next() >> bits }
      live.append((try fixture.store(), [UInt8](UnsafeRawBufferPointer(start: fixture.page, count: 4096))))
      if step % 3 == 2 {
        let (stored, _) = live.remove(at: Int(random.below(UInt64(live.count))))
        fixture.pages.free(stored)
      }
      if step % 50 == 49 { fixture.pages.store.compact() }
    }
    for (stored, bytes) in live {
      memcpy(fixture.page, bytes, 4096)
      XCTAssertTrue(try fixture.isSame(stored))
      fixture.pages.free(stored)
    }
    fixture.zspages.expectEmpty()
  }

  func testOverwrittenBlocksAreAnErrorOrAPageAndNeverATrap() throws {
    let fixture = try Fixture()
    var random = SeededRandom(seed: 5)
    fixture.fill { UInt64($0 % 7) << 30 | UInt64($0) }
    let stored = try fixture.store()
    var damaged = 0
    for _ in 0..<500 {
      // Any byte of the block, through the store's own parts.
      let offset = Int(random.below(stored.byteCount.rawValue))
      let value = UInt8(truncatingIfNeeded: random.next())
      let before = fixture.zspages.store.withParts(of: stored.handle) { parts -> UInt8 in
        let byte = UnsafeMutableRawPointer(
          mutating: offset < parts.first.count
            ? parts.first.baseAddress! + offset
            : parts.second.baseAddress! + (offset - parts.first.count))
        defer { byte.storeBytes(of: value, as: UInt8.self) }
        return byte.load(as: UInt8.self)
      }
      do throws(CompressedPageError) {
        try fixture.pages.load(stored, into: fixture.loaded)
      } catch {
        XCTAssertEqual(error, .damaged)
        damaged += 1
      }
      _ = fixture.zspages.store.withParts(of: stored.handle) { parts in
        UnsafeMutableRawPointer(
          mutating: offset < parts.first.count
            ? parts.first.baseAddress! + offset
            : parts.second.baseAddress! + (offset - parts.first.count)
        ).storeBytes(of: before!, as: UInt8.self)
      }
    }
    XCTAssertGreaterThan(damaged, 50)
    XCTAssertTrue(try fixture.isSame(stored))
    fixture.pages.free(stored)
  }

  func testRefusedPagesLeaveNothingBehind() throws {
    let fixture = try Fixture()
    fixture.zspages.store.limit = PageCount(UInt64(8))
    var random = SeededRandom(seed: 6)
    var live: [CompressedPage] = []
    while true {
      fixture.fill { _ in random.next() }
      do throws(ZsmallocError) { live.append(try fixture.store()) } catch {
        XCTAssertEqual(error, .limitReached)
        break
      }
    }
    // A page that needs no memory is stored all the same.
    fixture.fill { _ in 0 }
    live.append(try fixture.store())
    XCTAssertEqual(fixture.pages.figures.pages.rawValue, UInt64(live.count))
    for stored in live { fixture.pages.free(stored) }
    fixture.zspages.expectEmpty()
  }

  func testAValueOfNoPageIsReported() throws {
    let fixture = try Fixture()
    fixture.fill { UInt64($0) }
    let stored = try fixture.store()
    fixture.pages.free(stored)
    let faults = try fixture.zspages.host.faults {
      XCTAssertThrowsError(try fixture.pages.load(stored, into: fixture.loaded))
      fixture.pages.free(stored)
    }
    XCTAssertEqual(faults.map(\.kind), [.notAllocated, .notAllocated])
    XCTAssertEqual(fixture.pages.figures.pages, .zero)
    // A page of one word has no object; a free too many is found by their number.
    fixture.fill { _ in 0 }
    let word = try fixture.store()
    fixture.pages.free(word)
    let more = fixture.zspages.host.faults {
      fixture.pages.free(word)
      fixture.pages.free(CompressedPage(rawValue: 1 << 63 | 1 << 40))
    }
    XCTAssertEqual(more.map(\.kind), [.notAllocated, .notAllocated])
    XCTAssertEqual(fixture.pages.figures.pages, .zero)
  }
}
